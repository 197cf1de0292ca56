"""What a turn did, counted on each side in the same way: tokens, targets, optimizer steps, losses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback
from turns import Turns


class TurnCallback(TrainerCallback):
    """A turn ends where a trainer logs: once an update, once an epoch. What it logged are the turn's losses."""

    def __init__(self, turns: Turns, names: Sequence[str]) -> None:
        self.turns = turns
        self.names = names

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_kwargs: Any) -> None:
        if logs and all(name in logs for name in self.names):
            self.turns.facts["losses"] = [float(logs[name]) for name in self.names]
            self.turns.next()


class EpochCallback(TrainerCallback):
    """A turn is an epoch."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_epoch_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.turns.next()


class StepLosses(TrainerCallback):
    """The loss of each optimizer step, of a trainer that logs each."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def count_steps(optimizer: Any, turns: Turns) -> None:
    """Count the steps of `optimizer` (accelerate's wrapper or not)."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    optimizer.register_step_post_hook(lambda *_: turns.add("optimizer_steps", 1))


class StepCounter(TrainerCallback):
    """Counts optimizer steps of a trainer that makes its optimizer late."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, *_args: Any, optimizer: Any = None, **_kwargs: Any) -> None:
        count_steps(optimizer, self.turns)


def counted(collate: Callable[[Any], dict[str, Any]], turns: Turns) -> Callable[[Any], dict[str, Any]]:
    """`collate`, with the real tokens and targets of its batches counted, and the sum of their ids."""

    def counting(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        ids = batch["input_ids"]
        mask = batch.get("attention_mask")
        real = ids if mask is None else ids[mask.bool()]
        turns.add("tokens", real.numel())
        turns.add("token_ids_sum", int(real.sum()))
        if "labels" in batch:
            turns.add("targets", int((batch["labels"][..., 1:] != -100).sum()))
        return batch

    return counting


def digest(rows: Sequence[Sequence[int]]) -> int:
    """A short name of these sequences of ids, whatever their order; that of two lists together is the sum modulo 2**64."""
    names = (hashlib.sha256(" ".join(map(str, row)).encode()).digest()[:8] for row in rows)
    return sum(int.from_bytes(name, "big") for name in names) % 2**64
