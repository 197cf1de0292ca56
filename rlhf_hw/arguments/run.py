"""What every stage's `parse_…` hands back: the groups of settings, with what the run directory may keep of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from rlhf_hw.arguments.data import DataArguments
from rlhf_hw.arguments.hardware import HardwareArguments
from rlhf_hw.arguments.model import ModelArguments
from rlhf_hw.arguments.parser import Parsed
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.sharding import ShardingArguments
from rlhf_hw.arguments.training import TrainingFlags

R = TypeVar("R", bound="Run")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of one stage, checked as far as they can be without a device and a model.

    `given`: names of the settings the user gave. `notes`: lines to show, on flags that do not act as given.
    `opening`: lines to show before all others, on what the settings were read as.
    """

    model: ModelArguments
    peft: PeftArguments
    data: DataArguments
    stage: Any
    hardware: HardwareArguments
    sharding: ShardingArguments
    training: TrainingFlags
    dry_run: bool
    given: frozenset[str]
    notes: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()

    @property
    def ragged_batches(self) -> bool:
        """Whether the stage's batches are made of the data set's rows, each with a length of its own."""
        return False

    def config_dict(self) -> dict[str, dict[str, Any]]:
        """The settings as plain nested mappings, without credentials. As a file after `--config` they give this run
        again."""
        return {
            "model": plain(self.model),
            "peft": plain(self.peft),
            "data": plain(self.data),
            "stage": plain(self.stage),
            "hardware": plain(self.hardware),
            "sharding": plain(self.sharding),
            "training": self.training.config_dict(),
        }

    def secret_values(self) -> tuple[str, ...]:
        """Every text given here that must not be written anywhere."""
        return tuple(dict.fromkeys(self.model.secret_values() + self.training.secret_values()))


def plain(group: Any) -> dict[str, Any]:
    """A group's settings, without those that are never shown."""
    return {f.name: getattr(group, f.name) for f in dataclasses.fields(group) if f.init and f.repr}


def assemble(
    run: type[R], parsed: Parsed, data: type[DataArguments], stage: type, notes: Iterable[str] = ()
) -> R:
    """The groups as a `run`, with what one flag says on another's behalf settled.

    A file that was asked for beats the data set that is only the stage's default; `--use_cpu` is `--device cpu`.
    """
    hardware, training, source = parsed[HardwareArguments], parsed[TrainingFlags], parsed[data]
    if source.train_file is not None and "dataset_name" not in parsed.given:
        source.dataset_name = None
        for name in {"dataset_config_name", "train_splits", "eval_splits"} - parsed.given:
            setattr(source, name, None)  # of that data set
    if training.use_cpu and hardware.device == "auto":
        hardware.device = "cpu"
    return run(
        model=parsed[ModelArguments],
        peft=parsed[PeftArguments],
        data=source,
        stage=parsed[stage],
        hardware=hardware,
        sharding=parsed[ShardingArguments],
        training=training,
        dry_run=parsed.dry_run,
        given=parsed.given,
        notes=tuple(notes),
        opening=parsed.opening,
    )
