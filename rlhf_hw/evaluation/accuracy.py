"""How often a reward model prefers the better answer, in all and part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from rlhf_hw.data.tokenize import for_reward
from rlhf_hw.evaluation.scoring import AnswerScorer
from rlhf_hw.trainers.reward import wilson_interval

Scores = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Accuracy:
    """Of `pairs` pairs, the share in which the better answer scores higher, with Wilson's 95% interval; the mean scores."""

    pairs: int
    accuracy: float
    low: float
    high: float
    good_mean: float
    bad_mean: float

    @classmethod
    def of(cls, scores: Scores) -> Accuracy:
        """From (score of the better answer, of the worse) of at least one pair. A tie is no success."""
        good, bad = np.array(scores, dtype=float).T
        right = int((good > bad).sum())
        low, high = wilson_interval(right, len(good))
        return cls(len(good), right / len(good), low, high, float(good.mean()), float(bad.mean()))

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def pair_scores(
    scorer: AnswerScorer, rows: Dataset, max_length: int
) -> tuple[list[tuple[float, float]], int]:
    """(scores of chosen and rejected of each pair, how many pairs were left out as too long).

    Raises:
        UserError: no pair is left.
    """
    longest = min(max_length, scorer.longest or max_length)
    tokenized, report = for_reward(rows, scorer.tokenizer, max_length=longest)
    chosen = scorer.sequence_scores(list(tokenized["chosen_input_ids"]))
    rejected = scorer.sequence_scores(list(tokenized["rejected_input_ids"]))
    pairs = [
        (good, bad)
        for good, bad in zip(chosen, rejected, strict=True)
        if good is not None and bad is not None
    ]
    return pairs, report.rows - len(pairs)


def overall(parts: Mapping[str, Scores]) -> Accuracy:
    """Over all parts, each pair counting the same."""
    return Accuracy.of([pair for scores in parts.values() for pair in scores])
