"""Which prompts each update of PPO answers, and with which seeds: a pure function of (seed, update, rank)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from rlhf_hw.rollout.sampling import mix_seed


@dataclass(frozen=True)
class PromptBatch:
    """Rows of the data set with the seed by which each is answered."""

    rows: list[dict[str, Any]]
    seeds: list[int]

    @property
    def input_ids(self) -> list[list[int]]:
        return [row["input_ids"] for row in self.rows]


class PromptSchedule:
    """Walks through the prompts in a new order each time round, dealing every update's share to each process.

    Nothing is remembered between updates: a resumed run asks for update 7 and gets what the first run got, and
    two processes with B prompts each get together what one process with 2B prompts gets.
    """

    def __init__(self, rows: Any, seed: int) -> None:
        self.rows = rows
        self.seed = seed

    def batch(self, update: int, rank: int, world_size: int, batch_size: int) -> PromptBatch:
        """The `batch_size` prompts of process `rank` in update number `update`."""
        first = (update * world_size + rank) * batch_size
        positions = range(first, first + batch_size)
        indices = [shuffled_index(position, len(self.rows), self.seed) for position in positions]
        return PromptBatch(
            [self.rows[index] for index in indices], [mix_seed(self.seed, position) for position in positions]
        )


def shuffled_index(position: int, count: int, seed: int) -> int:
    """What stands at `position` (from 0, without end) when `count` rows are walked through in a new order each time."""
    turn, offset = divmod(position, count)
    return _order(count, mix_seed(seed, turn, 1))[offset]


@lru_cache(maxsize=8)
def _order(count: int, seed: int) -> Sequence[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
