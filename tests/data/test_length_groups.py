"""Rows of like length together: every row once, little padding, and an order that follows from its generator."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from rlhf_hw.data.length_groups import WINDOW, GroupedByLength

DRAW = random.Random(0)
LENGTHS = [max(4, min(512, int(DRAW.lognormvariate(4.2, 1.1)))) for _ in range(1003)]


def order(rows_a_step: int, seed: int = 0) -> list[int]:
    sampler = GroupedByLength(LENGTHS, rows_a_step)
    sampler.generator = torch.Generator().manual_seed(seed)
    assert len(sampler) == len(LENGTHS)
    return list(sampler)


def real_share(batches: Any) -> float:
    """Share of real tokens where each batch is padded to its longest row."""
    lengths = [[LENGTHS[row] for row in batch] for batch in batches]
    return sum(map(sum, lengths)) / sum(len(batch) * max(batch) for batch in lengths)


@pytest.mark.parametrize("rows_a_step", [1, 8, 32, 1003, 5000])
def test_every_row_comes_once(rows_a_step: int) -> None:
    assert sorted(order(rows_a_step)) == list(range(1003))


def test_the_order_follows_from_the_generator_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = order(8)
    torch.manual_seed(2)
    assert order(8) == first
    assert order(8, seed=1) != first


def test_little_of_a_batch_is_padding() -> None:
    rows = list(range(1003))
    at_random = [rows[at : at + 8] for at in range(0, 1003, 8)]
    grouped = [order(8)[at : at + 8] for at in range(0, 1003, 8)]
    assert real_share(at_random) < 0.45
    assert real_share(grouped) > 0.85


def test_steps_do_not_come_in_order_of_length_but_for_the_first() -> None:
    found = order(8)
    longest = [LENGTHS[found[at]] for at in range(0, 1000, 8)]
    assert longest[0] == max(longest)
    inside = longest[1 : WINDOW - 1]
    rising = sum(later > earlier for earlier, later in pairwise(inside))
    assert 0.25 < rising / len(inside) < 0.75


def test_rows_that_fill_no_step_are_drawn_at_random() -> None:
    """Else the same short rows would be left out of every epoch on a device that drops the last batch."""
    left = [set(order(8, seed)[1000:]) for seed in range(5)]
    assert len(set.union(*left)) > 8


def test_processes_and_accumulation_cut_one_order() -> None:
    """A step of two processes holds the rows of a step of two micro-batches, each process's as long as the other's."""

    def batches(processes: int) -> list[list[int]]:
        rows = order(16)
        shards = [BatchSamplerShard(BatchSampler(rows, 8, True), processes, i) for i in range(processes)]
        return [batch for together in zip(*shards, strict=True) for batch in together]

    assert batches(2) == batches(1)[:124]
    pairs = list(zip(batches(2)[::2], batches(2)[1::2], strict=True))
    apart = [abs(sum(LENGTHS[row] for row in one) - sum(LENGTHS[row] for row in two)) for one, two in pairs]
    assert sum(apart) / sum(LENGTHS) < 0.1
