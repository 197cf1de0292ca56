"""The memory of a stage, phase by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_hw.arguments.ppo import PPOArguments, PPORun
from rlhf_hw.arguments.reward import RewardRun
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sft import SFTRun
from rlhf_hw.estimate.held import SCRATCH, Sharing, joined
from rlhf_hw.estimate.live_bytes import FROZEN, TRAINED, Bytes
from rlhf_hw.estimate.passes import (
    Lengths,
    Manner,
    ppo_step,
    reward_pass,
    reward_step,
    rollout,
    sft_evaluation,
    sft_step,
    statistics,
)
from rlhf_hw.estimate.roles import Conditions, Models, Weights
from rlhf_hw.estimate.trace import peaks
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.trainers.ptx import BLOCK_SIZE

DEQUANTIZED, EXPERIENCE = "dequantized layer", "experience"


@dataclass(frozen=True)
class Phase:
    """A phase of a stage at its worst moment. terms: bytes by what they are for, the weights by role."""

    name: str
    terms: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class Estimate:
    """What a stage would take of each process's card. roles: role → its weights, before sharing."""

    stage: str
    phases: tuple[Phase, ...]
    roles: dict[str, Weights]
    conditions: Conditions

    @property
    def peak(self) -> int:
        """Bytes, of the worst phase."""
        return max(phase.total for phase in self.phases)

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


def estimate(run: Run, conditions: Conditions, sizes: str | None = None) -> Estimate:
    """The memory of a run of SFT, reward modelling or PPO, every row being as long as the flags allow.

    Raises:
        UserError: there is no such model, or it cannot be estimated.
    """
    return _Stage(run, conditions, sizes).estimate()


class _Stage:
    def __init__(self, run: Run, conditions: Conditions, sizes: str | None) -> None:
        self.run = run
        self.conditions = conditions
        self.models = Models(run, conditions, sizes)
        self.sharing = Sharing.of(run, conditions.processes)
        self.manner = Manner(
            conditions.autocast,
            bool(run.training.gradient_checkpointing),
            accumulates=run.training.gradient_accumulation_steps > 1 and not (self.sharing.stage or 0) >= 2,
        )
        self.asking = Manner(conditions.autocast)

    def estimate(self) -> Estimate:
        if isinstance(self.run, SFTRun):
            return self._sft(self.run)
        if isinstance(self.run, RewardRun):
            return self._reward(self.run)
        assert isinstance(self.run, PPORun)
        return self._ppo(self.run)

    def _sft(self, run: SFTRun) -> Estimate:
        policy = self.models.weights("policy")
        length = self.conditions.padded(run.data.max_seq_length)
        rows = run.training.per_device_train_batch_size
        make, layers = self.models.policy, {"policy": self.models.layers["policy"]}
        passes: dict[str, Callable[[Mapping[str, int]], Any]] = {
            "update": lambda n: sft_step(make(n["policy"]), rows, length, self.manner)
        }
        if run.training.do_eval:
            rows_asked = run.training.per_device_eval_batch_size
            passes["evaluation"] = lambda n: sft_evaluation(
                make(n["policy"]), rows_asked, length, self.asking
            )
        return self._training("sft", "policy", policy, passes, layers)

    def _reward(self, run: RewardRun) -> Estimate:
        make = self.models.reward_in_training
        weights = self.models.weights_of(make(), quantized=True)
        length = self.conditions.padded(run.data.max_length)
        pairs, every = run.training.per_device_train_batch_size, run.stage.rm_loss == "tokenwise"
        layers = {"reward": self.models.layers["policy"]}
        passes: dict[str, Callable[[Mapping[str, int]], Any]] = {
            "update": lambda n: reward_step(make(n["reward"]), pairs, length, every, self.manner)
        }
        if run.training.do_eval:
            rows = 2 * run.training.per_device_eval_batch_size
            passes["evaluation"] = lambda n: reward_pass(make(n["reward"]), rows, length, self.asking)
        return self._training("reward", "reward model", weights, passes, layers)

    def _training(
        self,
        stage: str,
        role: str,
        weights: Weights,
        passes: Mapping[str, Callable[[Mapping[str, int]], Any]],
        layers: dict[str, int],
    ) -> Estimate:
        """A stage that trains one model."""
        held = self.sharing.held(self.run, self.conditions, weights, weights)
        held[f"{role} weights"] = self.sharing.weights(weights)
        held[DEQUANTIZED] = weights.largest
        phases = [self._phase(name, held, one, layers) for name, one in passes.items()]
        phases.insert(1, self._optimizer_phase(held, weights))
        return Estimate(stage, tuple(phases), {role: weights}, self.conditions)

    def _ppo(self, run: PPORun) -> Estimate:
        ppo = run.stage
        roles = dict.fromkeys([*self.models.configs, *sorted(self.models.shared)])
        weights = {role: self.models.weights(role) for role in roles}
        together = joined(weights["policy"], *([weights["critic"]] if "critic" in weights else []))
        held = self.sharing.held(self.run, self.conditions, together, weights["policy"])
        for role in ("policy", "critic"):
            if role in weights:
                held[f"{role} weights"] = self.sharing.weights(weights[role])
        held[DEQUANTIZED] = together.largest
        lengths = self._lengths(run)
        held[EXPERIENCE] = self._experience(ppo, lengths)
        waiting = {
            role: Counter({f"{role} weights": weights[role].bytes})
            for role in ("reference", "reward")
            if role in weights
        }
        offloaded = {
            "reference": run.sharding.offload_reference_model,
            "reward": run.sharding.offload_reward_model and "reward" not in self.models.shared,
        }
        always: Bytes = Counter(held)
        for role, there in waiting.items():
            if not offloaded[role]:
                always += there
        whole = Counter(always)  # policy and value are gathered for rollout and scores
        for role in ("policy", "critic"):
            if role in weights:
                whole[f"{role} weights"] = weights[role].bytes
        rows = min(4 * ppo.mini_batch_size, ppo.answers_per_update)
        layers = self.models.layers
        trained = {role: layers[role] for role in layers if role != "reward"}
        policy = {"policy": layers["policy"]}
        unsupervised = BLOCK_SIZE if ppo.unsupervised_dataset_name is not None else 0
        compact = ppo.rollout_engine == "compact" or (
            ppo.rollout_engine == "auto" and self.conditions.compact and run.peft.peft in (None, "lora")
        )
        phases = [
            self._phase(
                "rollout",
                whole,
                lambda n: rollout(
                    self.models.policy(n["policy"]), ppo.batch_size, lengths, self.asking, compact=compact
                ),
                policy,
            )
        ]
        if "reward" in weights:
            phases.append(
                self._phase(
                    "score",
                    whole if not offloaded["reward"] else whole + waiting["reward"],
                    lambda n: reward_pass(self._scorer(n), rows, lengths.sequence, self.asking),
                    {"reward": layers["reward"]} if "reward" in layers else policy,
                )
            )
        phases.append(
            self._phase(
                "forward",
                whole
                if "reference" not in weights or not offloaded["reference"]
                else whole + waiting["reference"],
                lambda n: statistics(*self.models.actor_critic(n), rows, lengths, ppo, self.asking),
                trained,
            )
        )
        updated = {role: count for role, count in trained.items() if role != "reference"}
        phases.append(
            self._phase(
                "update",
                always,
                lambda n: self._update(n, ppo, lengths, unsupervised),
                updated,
            )
        )
        phases.append(self._optimizer_phase(always, together))
        return Estimate("ppo", tuple(phases), weights, self.conditions)

    def _scorer(self, layers: Mapping[str, int]) -> RewardModel:
        """The reward model, of its own or on the policy's base."""
        if "reward" in self.models.shared:
            return self.models.reward_on(self.models.policy(layers["policy"]))
        return self.models.reward(layers["reward"])

    def _update(
        self, layers: Mapping[str, int], ppo: PPOArguments, lengths: Lengths, unsupervised: int
    ) -> Mapping[Any, Bytes]:
        """Policy and value learn from a micro-batch; a reference, which is not asked, is not there."""
        apart = {"reference": 1} if "reference" in self.models.configs else {}
        together, parts = self.models.actor_critic({**layers, **apart})
        parts.pop("reference", None)
        return ppo_step(together, parts, ppo.mini_batch_size, lengths, ppo, self.manner, unsupervised)

    def _lengths(self, run: PPORun) -> Lengths:
        prompt = self.conditions.padded(run.data.max_prompt_length)
        answer = run.stage.output_max_length
        return Lengths(prompt, answer, self.conditions.padded(prompt + answer))

    @staticmethod
    def _experience(ppo: PPOArguments, lengths: Lengths) -> int:
        """Bytes of an update's answers: ids and mask in int64 and a mask of the answer; two masks and six numbers a token."""
        return ppo.answers_per_update * (17 * lengths.sequence + (2 + 6 * 4) * lengths.answer)

    def _phase(
        self,
        name: str,
        held: Mapping[str, int],
        one: Callable[[Mapping[str, int]], Any],
        layers: Mapping[str, int],
    ) -> Phase:
        """The worst moment of a pass, with what is held meanwhile."""
        moments = [self._in_step(there) for there in peaks(one, layers, self.models.alike)]
        worst = max(moments, key=lambda there: sum(there.values()))
        terms = Counter(held)
        terms.update(worst)
        return Phase(name, {kind: int(size) for kind, size in terms.items() if size > 0})

    def _in_step(self, there: Bytes) -> Bytes:
        """What a pass adds to the weights, which are counted once and as they are held."""
        shared = self.sharing.within_step(there)
        return Counter({kind: size for kind, size in shared.items() if kind not in (FROZEN, TRAINED)})

    def _optimizer_phase(self, held: Mapping[str, int], trained: Weights) -> Phase:
        """The optimizer's step: all gradients are there, and no activations."""
        terms = Counter(held)
        terms["gradients"] += self.sharing.divided(trained.trained, 2)
        terms[SCRATCH] = self.sharing.scratch(self.run, self.conditions, trained)
        return Phase("optimizer step", {kind: int(size) for kind, size in terms.items() if size > 0})
