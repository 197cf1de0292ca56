"""Trains each stage for a few steps in each of the processes that torchrun started, the weights shared in each way.

python -m torch.distributed.run --nproc_per_node 2 sharded_stages.py DIRECTORY

"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from accelerate.state import AcceleratorState, GradientState
from tiny_models import tiny_model, word_tokenizer
from tiny_roles import shared_roles
from tiny_runs import ppo_settings, ppo_trainer, reward_trainer, roles, sft_trainer, with_lora

from backends.process_group import leave_process_group
from rlhf_hw.arguments.fsdp import FSDPPlan
from rlhf_hw.arguments.sharding import completed
from rlhf_hw.compat.fsdp_through_accelerate import fsdp_arguments
from rlhf_hw.trainers.scoring import RewardModelScorer
from rlhf_hw.trainers.sharding import whole_weights


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """Training arguments for ZeRO. No weight is too small to be shared."""
    config = {"zero_optimization": {"stage": stage}, **more}
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return {"deepspeed": completed(config)}


def fully_sharded(**plan: Any) -> dict[str, Any]:
    """Training arguments for FSDP, and the environment that goes with them."""
    return fsdp_arguments(FSDPPlan(**plan).as_config())


#: to be called when the run before is forgotten
WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "ddp": dict,
    **{f"zero{stage}": partial(zero, stage) for stage in range(4)},
    "fsdp": fully_sharded,
    "fsdp_by_size": partial(fully_sharded, units="size", min_num_params=2000, reshard_after_forward=False),
}


def sft(directory: Path, **options: Any) -> Any:
    """With an adapter, and micro-batches of unequal numbers of targets."""
    return sft_trainer(
        directory, with_lora(tiny_model()), gradient_accumulation_steps=2, max_steps=3, **options
    )


def reward(directory: Path, **options: Any) -> Any:
    return reward_trainer(directory, tiny_model("qwen2", labels=1), max_steps=3, **options)


def ppo(directory: Path, *, adapter: bool = False, **options: Any) -> Any:
    """A critic of its own, or an `adapter` with a value head; and all statistics over processes."""
    settings = ppo_settings(
        batch_size=4,
        mini_batch_size=2,
        steps=24,
        output_max_length=8,
        adap_kl_ctrl=True,
        kl_target=0.1,
        kl_horizon=50,
        use_score_scaling=True,
        whiten_rewards=True,
    )
    return ppo_trainer(
        directory, roles(adapter=adapter, separate=not adapter), settings, world_size=2, **options
    )


def ppo_shared(directory: Path, **options: Any) -> Any:
    """All four roles as adapters of one base."""
    made = shared_roles(directory.parent / f"adapters-{os.environ['RANK']}")
    settings = ppo_settings(batch_size=4, mini_batch_size=2, steps=24, output_max_length=8)
    scorer = RewardModelScorer(made.reward, word_tokenizer())
    return ppo_trainer(directory, made.roles, settings, scorer, world_size=2, **options)


STAGES: dict[str, Callable[..., Any]] = {
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "ppo_lora": partial(ppo, adapter=True),
    "ppo_shared": ppo_shared,
}
_EACH = ("ddp", "zero0", "zero1", "zero2", "zero3")
#: what is tried
TRAINED = [
    *((stage, way) for stage in ("sft", "reward", "ppo") for way in _EACH),
    *(("sft", "fsdp"), ("reward", "fsdp_by_size"), ("ppo", "fsdp")),
    *(("ppo_lora", "ddp"), ("ppo_lora", "fsdp")),
    *(("ppo_shared", way) for way in ("ddp", "zero2", "zero3", "fsdp")),
]
#: those that are also resumed from a checkpoint in their middle
RESUMED = [
    *(("sft", "zero3"), ("reward", "zero1"), ("ppo", "zero2"), ("ppo", "zero3")),
    *(
        ("sft", "fsdp"),
        ("reward", "fsdp_by_size"),
        ("ppo", "fsdp"),
        ("ppo_shared", "zero3"),
        ("ppo_shared", "fsdp"),
    ),
]
OPTIMIZER = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}}
#: where a gradient is no number; also with an optimizer that DeepSpeed's configuration names
SPOILED: dict[str, Callable[[], dict[str, Any]]] = {
    "zero0": partial(zero, 0),
    "zero1": partial(zero, 1),
    "optimizer": partial(zero, 0, optimizer=OPTIMIZER),
    "fsdp": fully_sharded,
}
#: optimizer steps to it
MIDDLE = {"sft": 2, "reward": 2, "ppo": 8, "ppo_shared": 8}


def start_anew() -> None:
    """Forget how the run before was distributed; the process group stays."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]


class Collectives:
    """Counts the collective operations of this process while it is `with`in."""

    NAMES = (
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_object",
        "all_reduce",
        "broadcast",
        "barrier",
    )

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Collectives":
        self.before = {name: getattr(torch.distributed, name) for name in self.NAMES}
        for name, function in self.before.items():
            setattr(torch.distributed, name, self._counted(function))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, function in self.before.items():
            setattr(torch.distributed, name, function)

    def _counted(self, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return counted


def watched(trainer: Any, gathers: dict[str, Any]) -> None:
    """Let one process write longer answers than the other, and note what is gathered for it and when."""
    make, roll_out = trainer.maker.generate_experience, trainer.maker.engine.generate

    def generate(policy: Any, prompts: Any, sampling: Any, seeds: Any) -> Any:
        longest = 4 + 3 * trainer.accelerator.process_index
        with Collectives() as inside:
            rollout = roll_out(policy, prompts, replace(sampling, max_new_tokens=longest), seeds)
        gathers["in a rollout"] = gathers.get("in a rollout", 0) + inside.count
        gathers["lengths"] = [*gathers.get("lengths", []), int(rollout.response_lengths.max())]
        return rollout

    def experience(model: Any, prompts: Any) -> Any:
        gathers["rollouts"] = gathers.get("rollouts", 0) + 1
        sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        gathers["whole"] = all(0 not in shape for shape in sizes.values())
        return make(model, prompts)

    trainer.maker.engine.generate = generate
    trainer.maker.generate_experience = experience


def resumed_equals(
    whole: Any, stage: str, directory: Path, options: Callable[[], dict[str, Any]]
) -> dict[str, float]:
    """The largest difference of each weight between `whole`, a run that saved checkpoints, and one resumed in its middle."""
    start_anew()
    trainer = STAGES[stage](directory / "resumed", **options())
    if stage.startswith("ppo"):
        watched(trainer, {})
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()  # what is not read back would show
    trainer.train(resume_from_checkpoint=str(directory / f"checkpoint-{MIDDLE[stage]}"))
    assert trainer.state.global_step > MIDDLE[stage]
    with whole_weights(whole) as before, whole_weights(trainer) as after:
        found = dict(after.named_parameters())
        return {name: float((found[name] - tensor).abs().max()) for name, tensor in before.named_parameters()}


def spoiled(directory: Path, way: str, step: int = 2) -> dict[str, Any]:
    """PPO where one process has a gradient that is no number, in one optimizer step: what became of it."""
    start_anew()
    trainer = ppo(directory / f"spoiled-{way}", ddp_backend="gloo", **SPOILED[way]())
    passes = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        passes.append(len(passes) + 1)
        return gradient * float("nan") if passes[-1] == step else gradient

    if trainer.accelerator.is_main_process:
        head = trainer.model.critic.model.score
        head.register_forward_hook(
            lambda _m, _i, out: out.register_hook(spoil) and None if out.requires_grad else None
        )
    trainer.train()
    return {
        "finite": all(bool(weight.isfinite().all()) for weight in trainer.model.parameters()),
        "skipped": sum(row.get("ppo/skipped_steps", 0) for row in trainer.state.log_history),
    }


def main(directory: Path) -> None:
    """Write STAGE-WAY.pt (log lines, evaluation, what was gathered) and STAGE-WAY/ (what training saved)."""
    torch.set_num_threads(1)
    for stage, way in TRAINED:
        make = STAGES[stage]

        def options(stage: str = stage, way: str = way) -> dict[str, Any]:
            said = {"learning_rate": 1e-3, "max_grad_norm": 0.5, "ddp_backend": "gloo", **WAYS[way]()}
            saved = {"save_strategy": "steps", "save_steps": MIDDLE[stage]} if (stage, way) in RESUMED else {}
            return {**said, **saved}

        start_anew()
        gathers: dict[str, Any] = {}
        trainer = make(directory / f"{stage}-{way}", **options())
        if stage.startswith("ppo"):
            watched(trainer, gathers)
        trainer.train()
        trainer.save_model()
        evaluation = trainer.evaluate()
        resumed = (
            resumed_equals(trainer, stage, directory / f"{stage}-{way}", options)
            if (stage, way) in RESUMED
            else None
        )
        everyone = [None] * 2
        torch.distributed.all_gather_object(everyone, gathers)
        if trainer.accelerator.is_main_process:
            logs = [row for row in trainer.state.log_history if "loss" in row]
            found = {"logs": logs, "evaluation": evaluation, "gathers": everyone, "resumed": resumed}
            torch.save(found, directory / f"{stage}-{way}.pt")
    everyone = [None] * 2
    torch.distributed.all_gather_object(everyone, {way: spoiled(directory, way) for way in SPOILED})
    if torch.distributed.get_rank() == 0:
        torch.save(everyone, directory / "spoiled.pt")
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
