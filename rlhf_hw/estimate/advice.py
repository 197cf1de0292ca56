"""What would fit: the largest micro-batch, and what to change where nothing does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rlhf_hw.arguments.ppo import PPOArguments
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sharding import is_off
from rlhf_hw.errors import UserError
from rlhf_hw.estimate.roles import Conditions
from rlhf_hw.estimate.stages import Estimate, estimate

#: Share of a card that is left to kernels, the device's context and fragmentation. An assumption, not a measurement.
HEADROOM = 0.08
#: larger micro-batches are not looked for
LARGEST = 512

Estimator = Callable[[Run], Estimate]


@dataclass(frozen=True)
class Step:
    """A change of flags, on top of those before it, with the peak that it leaves (bytes)."""

    flags: str
    peak: int
    fits: bool


def usable(conditions: Conditions) -> int:
    """Bytes of a card that a stage may take."""
    return int(conditions.memory * 2**30 * (1 - HEADROOM))


def changed(run: Run, group: str, **settings: Any) -> Run:
    """`run` with settings of one of its groups changed."""
    other = copy.copy(getattr(run, group))
    for name, value in settings.items():
        setattr(other, name, value)
    return replace(run, **{group: other})


def micro_batch(run: Run) -> int:
    """Rows (SFT), pairs (reward model) or answers (PPO) of a forward and backward pass."""
    if isinstance(run.stage, PPOArguments):
        return run.stage.mini_batch_size
    return int(run.training.per_device_train_batch_size)


def with_micro_batch(run: Run, size: int) -> Run:
    """`run` with another micro-batch; PPO's accumulation follows, where it can, so that an optimizer step stays as large."""
    if not isinstance(run.stage, PPOArguments):
        return changed(run, "training", per_device_train_batch_size=size)
    step = run.stage.mini_batch_size * run.training.gradient_accumulation_steps
    run = changed(run, "training", gradient_accumulation_steps=step // size if step % size == 0 else 1)
    return changed(run, "stage", mini_batch_size=size)


def micro_batches(run: Run) -> list[int]:
    """The micro-batches that a run may have, ascending."""
    if not isinstance(run.stage, PPOArguments):
        return list(range(1, LARGEST + 1))
    answers = run.stage.answers_per_update
    return [size for size in range(1, min(answers, LARGEST) + 1) if answers % size == 0]


def largest_micro_batch(
    run: Run, conditions: Conditions, sizes: str | None = None
) -> tuple[int, Estimate] | None:
    """The largest micro-batch that fits, with its estimate; None where not even one of 1 does.

    Memory grows evenly with rows within each phase: two estimates tell where to look, and what is found is estimated too.
    """
    limit, allowed = usable(conditions), micro_batches(run)

    def at(size: int) -> Estimate:
        return estimate(with_micro_batch(run, size), conditions, sizes)

    one = at(1)
    if one.peak > limit:
        return None
    probe = allowed[min(len(allowed) - 1, 3)]
    few = at(probe)
    bound = allowed[-1]
    for before, after in zip(one.phases, few.phases, strict=True):
        slope = (after.total - before.total) / max(probe - 1, 1)
        if slope > 0:
            bound = min(bound, 1 + int((limit - before.total) / slope))
    below = [size for size in allowed if size <= max(bound, 1)]
    while len(below) > 1:
        found = at(below[-1])
        if found.peak <= limit:
            return below[-1], found
        below.pop()
    return 1, one


def remedies(run: Run, conditions: Conditions, sizes: str | None = None) -> list[Step]:
    """Changes, each on top of the ones before that helped, until the stage fits."""
    limit, steps = usable(conditions), []
    peak = estimate(run, conditions, sizes).peak
    for flags, other in _changes(run, conditions):
        candidate = other(run)
        try:
            found = estimate(candidate, conditions, sizes).peak
        except UserError:  # not possible of this model
            continue
        if found >= peak:
            continue
        run, peak = candidate, found
        steps.append(Step(flags, peak, peak <= limit))
        if peak <= limit:
            break
    return steps


def _changes(run: Run, conditions: Conditions) -> Iterator[tuple[str, Callable[[Run], Run]]]:
    """(flags, what they do to a run), what costs least first."""
    ppo = run.stage if isinstance(run.stage, PPOArguments) else None
    full, several = run.peft.peft is None, conditions.processes > 1
    if not run.training.gradient_checkpointing:
        yield "--gradient_checkpointing", lambda r: changed(r, "training", gradient_checkpointing=True)
    if ppo is not None and ppo.batch_size > 1:
        half = max(1, ppo.batch_size // 4)
        if ppo.batch_size % half == 0:
            more = ppo.generation_batches * (ppo.batch_size // half)
            yield (
                f"--batch_size {half} --generation_batches {more}",
                lambda r: changed(r, "stage", batch_size=half, generation_batches=more),
            )
    if micro_batch(run) > 1:
        flag = "--mini_batch_size" if ppo is not None else "--per_device_train_batch_size"
        step = micro_batch(run) * run.training.gradient_accumulation_steps
        yield (
            f"{flag} 1 --gradient_accumulation_steps {step}",
            lambda r: changed(with_micro_batch(r, 1), "training", gradient_accumulation_steps=step),
        )
    if ppo is not None and (ppo.reward_model_name is not None):
        yield "--offload_reward_model", lambda r: changed(r, "sharding", offload_reward_model=True)
    if ppo is not None and (full or ppo.reference_model_name is not None):
        yield "--offload_reference_model", lambda r: changed(r, "sharding", offload_reference_model=True)
    if several and is_off(run.training.deepspeed) and is_off(run.training.fsdp):
        for stage in (1, 2, 3):
            yield (
                f"--deepspeed --zero_stage {stage}",
                lambda r, stage=stage: changed(  # type: ignore[misc]
                    changed(r, "training", deepspeed=True), "sharding", zero_stage=stage
                ),
            )
    if full:
        yield "--peft lora", lambda r: changed(r, "peft", peft="lora", full_finetune=False)
    if conditions.quantized and run.model.quantization_bits() is None:
        yield "--qlora (with --peft lora, without --zero_stage 3)", _in_four_bits


def _in_four_bits(run: Run) -> Run:
    if not is_off(run.training.deepspeed) and getattr(run.sharding, "zero_stage", None) == 3:
        run = changed(run, "sharding", zero_stage=2)
    run = changed(run, "peft", peft="lora", full_finetune=False)
    return changed(run, "model", qlora=True, bits=4)
