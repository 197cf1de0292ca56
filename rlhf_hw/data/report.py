"""What became of the rows on their way to training: read, malformed, dropped, cut, and how long they are."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FIRST_ROWS_KEPT = 5


@dataclass
class RowCount:
    """How many rows, and the numbers (from 1) of the first few, to find them by."""

    count: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, row_number: int) -> None:
        self.count += 1
        if len(self.first_rows) < FIRST_ROWS_KEPT:
            self.first_rows.append(row_number)

    def __str__(self) -> str:
        rows = ", ".join(map(str, self.first_rows)) + (", …" if self.count > len(self.first_rows) else "")
        return f"{self.count} (row {rows})"


def count_rows(reasons: Iterable[str]) -> dict[str, RowCount]:
    """Reason → rows, from one reason a row; "" means nothing is wrong with that row."""
    counts: dict[str, RowCount] = {}
    for number, reason in enumerate(reasons, start=1):
        if reason:
            counts.setdefault(reason, RowCount()).add(number)
    return counts


@dataclass
class FileReport:
    """One source of rows: `read` = `converted` + all malformed; `converted` − all dropped rows are usable."""

    label: str
    format: str
    read: int
    malformed: dict[str, RowCount]
    dropped: dict[str, RowCount]

    @property
    def malformed_count(self) -> int:
        return sum(rows.count for rows in self.malformed.values())

    @property
    def converted(self) -> int:
        return self.read - self.malformed_count

    @property
    def usable(self) -> int:
        return self.converted - sum(rows.count for rows in self.dropped.values())

    def lines(self) -> list[str]:
        head = f"{self.label}: {self.read} rows read as {self.format}, {self.converted} converted, {self.usable} usable"
        malformed = [f"  malformed: {reason}: {rows}" for reason, rows in self.malformed.items()]
        return [head, *malformed, *(f"  dropped: {reason}: {rows}" for reason, rows in self.dropped.items())]


@dataclass
class SetReport:
    """What one set contributed: rows of this stage's share, where the validation rows came from."""

    name: str
    train_rows: int
    validation_rows: int
    validation_origin: str

    def line(self) -> str:
        held_out = f"{self.validation_rows} to validation ({self.validation_origin})"
        return f"{self.name} gives {self.train_rows} rows to train, {held_out}"


@dataclass
class DataReport:
    """What `load_splits` read and made of it.

    `files`: one entry a source of rows, train first. `validation_origin`: where the validation rows are from.
    `sets`: what each set contributed. `notes`: lines on settings that had nothing to act on.
    """

    files: list[FileReport]
    validation_origin: str
    train_rows: int
    validation_rows: int
    sets: list[SetReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [line for file in self.files for line in file.lines()]
        origin = self.validation_origin
        if len(self.sets) > 1:
            lines += [one.line() for one in self.sets]
            origin = f"{len(self.sets)} sets mixed"
        lines.append(f"train {self.train_rows} rows, validation {self.validation_rows} rows ({origin})")
        return lines + self.notes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class LengthStatistics:
    """Lengths in tokens."""

    minimum: int
    median: float
    p95: float
    maximum: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "LengthStatistics":
        if not lengths:
            return cls(0, 0.0, 0.0, 0)
        values = np.asarray(lengths)
        median, p95 = np.percentile(values, (50, 95))
        return cls(int(values.min()), float(median), float(p95), int(values.max()))

    def __str__(self) -> str:
        return f"min {self.minimum}, median {self.median:.0f}, p95 {self.p95:.0f}, max {self.maximum}"


@dataclass
class TokenReport:
    """What tokenization kept.

    `rows`: rows given. `dropped`: reason → rows. `truncated`: rows cut at the limit (they have no EOS).
    `lengths`: of the kept rows; of a pair, its longer side. `target_tokens`: tokens with loss (SFT; else 0).
    `turns_not_found`: earlier assistant turns the chat template rewrites, which therefore carry no loss.
    """

    rows: int
    kept: int
    dropped: dict[str, int]
    truncated: int
    lengths: LengthStatistics
    target_tokens: int = 0
    turns_not_found: int = 0

    def lines(self) -> list[str]:
        found = [f"{self.kept} of {self.rows} rows kept; tokens a row: {self.lengths}"]
        found += [f"  dropped: {reason}: {count}" for reason, count in self.dropped.items()]
        if self.truncated:
            found.append(f"  cut at the length limit: {self.truncated}")
        if self.target_tokens:
            found.append(f"  tokens with loss: {self.target_tokens}")
        if self.turns_not_found:
            found.append(f"  earlier assistant turns not found in the rendered text: {self.turns_not_found}")
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Reason → number of rows, without the rows that have none."""
    return dict(Counter(reason for reason in reasons if reason))
