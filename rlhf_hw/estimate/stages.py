"""The memory of a stage, phase by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf_hw.arguments.ppo import PPOArguments, PPORun
from rlhf_hw.arguments.reward import RewardRun
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sft import SFTRun
from rlhf_hw.estimate.held import held, joined, within_optimizer
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
from rlhf_hw.estimate.sharing import GATHERED, Parts, Sharing
from rlhf_hw.estimate.trace import peaks
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.trainers.ptx import BLOCK_SIZE

DEQUANTIZED, EXPERIENCE, PROCESS = "dequantized layer", "experience", "process"


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
        self.models = Models(run, conditions, sizes)
        self.run = self.models.run
        self.conditions = conditions
        self.sharing = Sharing.of(run, conditions.processes)
        #: whether micro-batches add to gradients that are there, and whether these are then shared
        self.accumulates = run.training.gradient_accumulation_steps > 1
        self.adds_to_shares = self.accumulates and self.sharing.shares(1)
        plan = self.sharing.plan
        self.asking = Manner(conditions.autocast, rows_apart=conditions.leaves_padding_out)
        self.manner = replace(
            self.asking,
            gradient_checkpointing=bool(run.training.gradient_checkpointing)
            or (plan is not None and plan.activation_checkpointing),
            accumulates=self.accumulates and not self.adds_to_shares,
            keeps_casts=self.sharing.keeps_casts,
        )

    def estimate(self) -> Estimate:
        if isinstance(self.run, SFTRun):
            return self._sft(self.run)
        if isinstance(self.run, RewardRun):
            return self._reward(self.run)
        assert isinstance(self.run, PPORun)
        return self._ppo(self.run)

    def _sft(self, run: SFTRun) -> Estimate:
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
        return self._training("sft", "policy", make(), passes, layers)

    def _reward(self, run: RewardRun) -> Estimate:
        make = self.models.reward_in_training
        length = self.conditions.padded(run.data.max_length)
        pairs, every = run.training.per_device_train_batch_size, run.stage.rm_loss == "tokenwise"
        layers = {"reward": self.models.layers["policy"]}
        passes: dict[str, Callable[[Mapping[str, int]], Any]] = {
            "update": lambda n: reward_step(make(n["reward"]), pairs, length, every, self.manner)
        }
        if run.training.do_eval:
            rows = 2 * run.training.per_device_eval_batch_size
            passes["evaluation"] = lambda n: reward_pass(make(n["reward"]), rows, length, self.asking)
        return self._training("reward", "reward model", make(), passes, layers)

    def _training(
        self,
        stage: str,
        role: str,
        model: Any,
        passes: Mapping[str, Callable[[Mapping[str, int]], Any]],
        layers: dict[str, int],
    ) -> Estimate:
        """A stage that trains one model; `model`: all layers of it."""
        weights = self.models.weights_of(model, quantized=True)
        there = self._held(weights, weights)
        there[f"{role} weights"] = self.sharing.divided(weights.bytes, 3)
        there[DEQUANTIZED] = weights.largest
        training = self._in_training(there, model, weights)
        phases = [
            self._phase(name, training, one, layers, weights if name == "update" else None)
            for name, one in passes.items()
        ]
        phases.insert(1, self._optimizer_phase(there, weights))
        return Estimate(stage, tuple(phases), {role: weights}, self.conditions)

    def _held(self, trained: Weights, policy: Weights) -> Bytes:
        there = held(self.sharing, self.run, self.conditions, trained, policy)
        there[PROCESS] = self.conditions.process
        return there

    def _in_training(self, there: Bytes, model: Any, weights: Weights) -> Bytes:
        """What is held in passes that train: where weights are shared, those that are gathered too."""
        self.parts = Parts() if self.sharing.plan is None else Parts.of(model, self.sharing.plan)
        gathered = self.sharing.gathered(self.parts, weights.bytes, weights.all_parameters)
        return there + Counter({GATHERED: gathered})

    def _ppo(self, run: PPORun) -> Estimate:
        ppo, models = run.stage, self.models
        roles = dict.fromkeys([*models.configs, *sorted(models.shared)])
        weights = {role: models.weights(role) for role in roles}
        trains = [role for role in ("policy", "critic") if role in weights]
        together = joined(*(weights[role] for role in trains))
        always = self._held(together, weights["policy"])
        for name in trains:
            always[f"{name} weights"] = self.sharing.divided(weights[name].bytes, 3)
        always[DEQUANTIZED] = together.largest
        always["frozen adapters"] = models.frozen_adapters
        lengths = self._lengths(run)
        always[EXPERIENCE] = self._experience(ppo, lengths)
        offloaded: dict[str, Bytes] = {"reference": Counter(), "reward": Counter()}
        for role in ("reference", "reward"):
            if role in weights:
                waits = getattr(run.sharding, f"offload_{role}_model") and role not in models.shared
                place = offloaded[role] if waits else always
                place[f"{role} weights"] = weights[role].bytes
        whole = Counter(always)  # policy and value are gathered for rollout and scores
        if self.sharing.shares(3):
            whole[GATHERED] = together.bytes
        layers = models.layers
        model, _ = models.actor_critic({**layers, **({"reference": 1} if "reference" in layers else {})})
        training = self._in_training(always, model, together)
        rows = min(4 * ppo.mini_batch_size, ppo.answers_per_update)
        trained = {role: layers[role] for role in layers if role != "reward"}
        policy = {"policy": layers["policy"]}
        unsupervised = BLOCK_SIZE if ppo.unsupervised_dataset_name is not None else 0
        phases = [self._phase("rollout", whole, lambda n: self._rollout(n, run, lengths), policy)]
        if "reward" in weights:
            phases.append(
                self._phase(
                    "score",
                    whole + offloaded["reward"],
                    lambda n: reward_pass(self._scorer(n), rows, lengths.sequence, self.asking),
                    {"reward": layers["reward"]} if "reward" in layers else policy,
                )
            )
        phases.append(
            self._phase(
                "forward",
                whole + offloaded["reference"],
                lambda n: statistics(*models.actor_critic(n), rows, lengths, ppo, self.asking),
                trained,
            )
        )
        updated = {role: count for role, count in trained.items() if role != "reference"}
        phases.append(
            self._phase(
                "update",
                training,
                lambda n: self._update(n, ppo, lengths, unsupervised),
                updated,
                together,
            )
        )
        phases.append(self._optimizer_phase(always, together))
        return Estimate("ppo", tuple(phases), weights, self.conditions)

    def _rollout(self, layers: Mapping[str, int], run: PPORun, lengths: Lengths) -> Mapping[Any, Bytes]:
        """Answers are drawn, by the engine that the run would take."""
        asked = run.stage.rollout_engine
        compact = asked == "compact" or (
            asked == "auto" and self.conditions.compact and run.peft.peft in (None, "lora")
        )
        read_at_once = self.conditions.prefill_tokens if compact else None
        policy = self.models.policy(layers["policy"])
        return rollout(policy, run.stage.batch_size, lengths, self.asking, read_at_once)

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
        trained: Weights | None = None,
    ) -> Phase:
        """The worst moment of a pass, with what is held meanwhile. `trained`: what learns in it."""
        before = trained.trained if trained is not None and self.adds_to_shares else 0
        learns = trained is not None
        moments = [self._in_step(there, before, learns) for there in peaks(one, layers, self.models.alike)]
        worst = max(moments, key=lambda there: sum(there.values()))
        terms = Counter(held)
        terms.update(worst)
        return _named(name, terms)

    def _in_step(self, there: Bytes, before: int, learns: bool) -> Bytes:
        """What a pass adds to the weights, which are counted once and as they are held."""
        shared = (
            self.sharing.within_step(there, self.parts, before, self.conditions.reserves) if learns else there
        )
        return Counter({kind: size for kind, size in shared.items() if kind not in (FROZEN, TRAINED)})

    def _optimizer_phase(self, there: Bytes, trained: Weights) -> Phase:
        """The optimizer's step: all gradients are there, and no activations."""
        own = within_optimizer(self.sharing, self.run, self.conditions, trained)
        return _named("optimizer step", there + own)


def _named(name: str, terms: Mapping[str, int]) -> Phase:
    return Phase(name, {kind: int(size) for kind, size in terms.items() if size > 0})
