"""Which rows go where: into training or evaluation, and into which of the three stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from datasets import Dataset, concatenate_datasets

from rlhf_hw.data.fingerprint import fingerprint_of_values
from rlhf_hw.errors import UserError

Shares = tuple[float, float, float]


def stage_part(count: int, shares: Shares, stage: int, seed: int) -> np.ndarray:
    """The rows of `count` that stage 0, 1 or 2 gets, in random order. The three parts are disjoint and together all.

    They depend on the number of rows, the shares and the seed alone, so that every stage finds the same three.
    """
    order = np.random.default_rng((seed, 1)).permutation(count)
    total = sum(shares)
    bounds = [round(count * bound / total) for bound in accumulate(shares, initial=0.0)]
    return order[bounds[stage] : bounds[stage + 1]]


def held_out_tenth(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to evaluate on), nine to one; fewer than ten rows are all trained on."""
    held_out = len(rows) // 10
    return rows[held_out:], rows[:held_out]


def split_off(
    train: Dataset, *, size: int | None, percentage: int, seed: int
) -> tuple[Dataset, Dataset | None, str]:
    """(train, validation, where validation came from): `size` rows drawn by seed, or the first `percentage`."""
    count = len(train)
    if size is not None:
        flag = "--eval_dataset_size"
        held_out = np.random.default_rng(seed).permutation(count)[:size]
        origin = f"{size} rows of train, drawn with seed {seed}"
    elif percentage:
        size, flag = math.ceil(count * percentage / 100), "--validation_split_percentage"
        held_out = np.arange(size)
        origin = f"the first {percentage}% of train"
    else:
        return train, None, "none asked for"
    if size >= count:
        raise UserError(f"{flag}: {size} rows for validation leave none of {count} to train on; give fewer")
    is_held_out = np.zeros(count, dtype=bool)
    is_held_out[held_out] = True
    return take(train, np.flatnonzero(~is_held_out)), take(train, np.flatnonzero(is_held_out)), origin


def take(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> Dataset:
    """Some rows, in this order, under a fingerprint that says which."""
    if isinstance(indices, range) and indices == range(len(dataset)):
        return dataset
    which = indices if isinstance(indices, range) else fingerprint_of_values(np.asarray(indices).tobytes())
    return dataset.select(indices, new_fingerprint=fingerprint_of_values(dataset._fingerprint, which))


def first(dataset: Dataset, limit: int | None) -> Dataset:
    """At most `limit` rows."""
    return take(dataset, range(min(len(dataset), limit or len(dataset))))


def mixed(parts: Sequence[Dataset], seed: int) -> Dataset:
    """The rows of several data sets in random order; of one, as it is."""
    if len(parts) == 1:
        return parts[0]
    together = concatenate_datasets(list(parts))
    fingerprint = fingerprint_of_values("mixed", seed, *(part._fingerprint for part in parts))
    order = np.random.default_rng((seed, 2)).permutation(len(together))
    return together.select(order, new_fingerprint=fingerprint)
