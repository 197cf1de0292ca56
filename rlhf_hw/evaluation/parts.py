"""The rows of an evaluation, in named parts: a part a data set, or one for each value of a column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from datasets import Dataset

from rlhf_hw.arguments.held_out import HeldOutArguments
from rlhf_hw.data.convert import convert_rows, format_of
from rlhf_hw.data.example import Purpose
from rlhf_hw.data.formats import format_named, known_formats
from rlhf_hw.data.sources import DataSource, load_splits, open_train_rows
from rlhf_hw.data.splits import first
from rlhf_hw.errors import UserError

#: The part of rows whose column is empty.
NONE = "(none)"


def evaluation_parts(settings: HeldOutArguments, purpose: Purpose) -> dict[str, Dataset]:
    """Part → canonical rows: of `--by COLUMN` its values, else the data sets given, each with its held-out rows where it
    has some, else all its rows.

    Raises:
        UserError: the data cannot be read, or there is no such column.
    """
    names = settings.dataset_name
    source = DataSource(
        dataset_config_name=settings.dataset_config_name,
        data_format=settings.data_format,
        cache_dir=settings.dataset_cache_directory,
        token=token if isinstance(token := settings.hub_token(), str) else None,
        task=settings.task,
        max_malformed_fraction=settings.max_malformed_fraction,
    )
    if settings.by is not None:
        if len(names) != 1:
            raise UserError(
                f"--by: parts one data set, {len(names)} were given; leave it out, each set is a part then"
            )
        return _by_column(replace(source, dataset_name=names[0]), settings, purpose)
    parts = {}
    for name in names:
        splits = load_splits(replace(source, dataset_name=name), purpose)
        rows = splits.train if splits.validation is None else splits.validation
        parts[name] = first(rows, settings.max_samples)
    return parts


def _by_column(source: DataSource, settings: HeldOutArguments, purpose: Purpose) -> dict[str, Dataset]:
    """A part for each value of the column `--by`, of the set's rows as they come."""
    name = str(source.dataset_name)
    rows = open_train_rows(source)
    formats = known_formats(None)
    chosen = settings.data_format
    row_format = format_of(rows, formats, name) if chosen is None else format_named(chosen, formats)
    converted = convert_rows(
        rows,
        purpose=purpose,
        row_format=row_format,
        task=settings.task,
        max_malformed_fraction=settings.max_malformed_fraction,
        cache_dir=settings.dataset_cache_directory,
    )
    numbers: dict[str, list[int]] = {}
    columns: set[str] = set()
    for number, row in enumerate(row_format.gather(rows.read())):
        if settings.max_samples is not None and number >= settings.max_samples:
            break
        if isinstance(row, dict):
            columns |= {str(column) for column in row}
            value = row.get(settings.by)
            numbers.setdefault(NONE if value is None or value == "" else str(value), []).append(number)
    if settings.by not in columns:
        raise UserError(f"--by: {name} has no column {settings.by}; it has {', '.join(sorted(columns))}")
    parts = {part: converted.usable(np.array(which)) for part, which in sorted(numbers.items())}
    return {part: rows for part, rows in parts.items() if len(rows)}
