"""Lengths of tokenized rows, for shape policies that choose their buckets from the data, and for batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset


def row_lengths(dataset: Dataset, *columns: str) -> list[int]:
    """Tokens of each row's longest list among `columns`."""
    table = dataset.select_columns(list(columns)).with_format("arrow")[:]
    lengths = [np.asarray(pc.list_value_length(table[name])) for name in columns]
    return np.max(lengths, axis=0).tolist()


def lengths_of_rows(dataset: Any, columns: Sequence[str], known: str | None = None) -> list[int]:
    """Tokens of each row's longest list among `columns`, of any data set; or what its column `known` says."""
    if known is not None and known in (getattr(dataset, "column_names", None) or ()):
        return list(dataset[known])
    if isinstance(dataset, Dataset):
        return row_lengths(dataset, *columns)
    return [max(len(row[column]) for column in columns) for row in dataset]
