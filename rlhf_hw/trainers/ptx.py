"""Unsupervised text beside PPO (PTX): InstructGPT's pretraining mix, against forgetting."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_hw.trainers.prompts import shuffled_index

#: tokens in a block of text
BLOCK_SIZE = 512


class UnsupervisedBatches:
    """Which blocks of text each micro-batch learns from: a pure function of (seed, optimizer step, rank).

    A step's blocks are the next ones of the shuffled set, whichever micro-batches and processes share them: N
    accumulation steps, N processes and one large batch see the same.

    Args:
        blocks: rows with `input_ids`, all of one length L.
        rows: blocks in a micro-batch.
        micro_batches: micro-batches of a process in an optimizer step.
    """

    def __init__(
        self, blocks: Any, *, rows: int, micro_batches: int, rank: int, world_size: int, seed: int
    ) -> None:
        self.blocks = blocks
        self.rows = rows
        self.micro_batches = micro_batches
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        length = len(blocks[0]["input_ids"])
        #: tokens that are predicted in one optimizer step, over all processes
        self.tokens_per_step = rows * micro_batches * world_size * (length - 1)

    def of_step(self, step: int) -> list[torch.Tensor]:
        """Ids [rows, L] for each micro-batch of this process in optimizer step number `step`."""
        share = self.rows * self.micro_batches
        first = (step * self.world_size + self.rank) * share
        indices = [
            shuffled_index(position, len(self.blocks), self.seed) for position in range(first, first + share)
        ]
        ids = torch.tensor([self.blocks[index]["input_ids"] for index in indices])
        return list(ids.split(self.rows))
