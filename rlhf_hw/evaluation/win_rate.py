"""Which of two answers is better, over many rows: verdicts of both orders, the win rate and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from rlhf_hw.trainers.reward import wilson_interval


class Verdict(str, Enum):
    """Which answer a judge prefers: of the two as rows have them, whatever the order it saw them in."""

    REFERENCE = "reference"
    ANSWER = "answer"
    TIE = "tie"
    UNCLEAR = "unclear"  #: the judge gave no verdict that could be read

    @property
    def worth(self) -> float:
        """1 for the answer, 0 for the reference, one half for a tie."""
        return {Verdict.REFERENCE: 0.0, Verdict.ANSWER: 1.0, Verdict.TIE: 0.5}[self]


def preference(verdicts: Sequence[Verdict]) -> float | None:
    """1 where the reference is preferred, 2 where the answer is, 1.5 where they are level over the orders asked.

    None where no verdict could be read.
    """
    clear = [verdict.worth for verdict in verdicts if verdict is not Verdict.UNCLEAR]
    if not clear:
        return None
    mean = sum(clear) / len(clear)
    return 1.5 if mean == 0.5 else (2 if mean > 0.5 else 1)


@dataclass(frozen=True)
class WinRate:
    """`rate`: the share of rows with preference 2, ties (1.5) counted half; `low`, `high`: Wilson's 95% interval of it."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    unclear: int

    @classmethod
    def of(cls, preferences: Iterable[float | None]) -> WinRate:
        """The win rate of rows' preferences; rows without one are counted as unclear and left out."""
        found = list(preferences)
        wins, ties, losses = (sum(value == kind for value in found) for kind in (2, 1.5, 1))
        judged = wins + ties + losses
        score = wins + ties / 2
        low, high = wilson_interval(score, judged)
        rate = score / judged if judged else 0.5
        return cls(rate, low, high, wins, ties, losses, len(found) - judged)

    def line(self) -> str:
        """In one line for the user."""
        unclear = f", {self.unclear} unclear and left out" if self.unclear else ""
        return (
            f"{self.rate:.1%} (95% interval {self.low:.1%}–{self.high:.1%}; {self.wins} wins, {self.ties} ties counted "
            f"half, {self.losses} losses{unclear})"
        )

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def by_source(rows: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> dict[str, WinRate]:
    """The win rate of each source, where there are several; rows carry `preference`."""
    names = sorted(set(sources))
    if len(names) < 2:
        return {}
    return {
        name or "(none)": WinRate.of(
            row["preference"] for row, source in zip(rows, sources, strict=True) if source == name
        )
        for name in names
    }
