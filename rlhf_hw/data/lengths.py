"""Lengths of tokenized rows, for shape policies that choose their buckets from the data."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset


def row_lengths(dataset: Dataset, *columns: str) -> list[int]:
    """Tokens of each row's longest list among `columns`."""
    table = dataset.select_columns(list(columns)).with_format("arrow")[:]
    lengths = [np.asarray(pc.list_value_length(table[name])) for name in columns]
    return np.max(lengths, axis=0).tolist()
