"""How a device wants its batches shaped.

On a CPU or an NVIDIA GPU a new shape costs nothing, so batches are as small as their rows allow. A Gaudi compiles a
graph for every new shape, so there the shapes are few, and fixed before training.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Widths that `choose_buckets` chooses from.
MOST_WIDTHS = 512


class ShapePolicy(Protocol):
    """What the collators and the rollout ask about shapes."""

    @property
    def may_vary(self) -> bool:
        """True where a new shape costs nothing; False where each new shape compiles a new graph."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """The lengths there are; none where shapes may vary."""
        ...

    def pad_length(self, longest: int) -> int:
        """Length (tokens) to which a batch whose longest row has `longest` tokens is padded."""
        ...


@dataclass(frozen=True)
class DynamicShapes:
    """Pad to the longest row of the batch, or to `at_least` so many tokens, rounded up to `multiple_of`."""

    multiple_of: int = 1
    at_least: int = 0

    @property
    def may_vary(self) -> bool:
        return True

    @property
    def buckets(self) -> tuple[int, ...]:
        return ()

    def pad_length(self, longest: int) -> int:
        return round_up(max(longest, self.at_least), self.multiple_of)


@dataclass(frozen=True)
class StaticBuckets:
    """Pad to the first of a few lengths (ascending) that is long enough.

    A row longer than all of them (in an evaluation set, say) is rounded up to `multiple_of`: one more shape.
    """

    buckets: tuple[int, ...]
    multiple_of: int = 8

    @property
    def may_vary(self) -> bool:
        return False

    def pad_length(self, longest: int) -> int:
        place = bisect_left(self.buckets, longest)
        return self.buckets[place] if place < len(self.buckets) else round_up(longest, self.multiple_of)


@dataclass(frozen=True)
class WithinContext:
    """`policy`, whose lengths end at a model's `context`: positions beyond it may not exist.

    A row that is longer than the context stays as long as it is.
    """

    policy: ShapePolicy
    context: int

    @property
    def may_vary(self) -> bool:
        return self.policy.may_vary

    @property
    def buckets(self) -> tuple[int, ...]:
        return tuple(sorted({min(bucket, self.context) for bucket in self.policy.buckets}))

    def pad_length(self, longest: int) -> int:
        return max(longest, min(self.policy.pad_length(longest), self.context))


@dataclass(frozen=True)
class RolloutShapes:
    """The widths of a PPO update: prompts (left padded), whole sequences (right padded), answers.

    `answer_width`: columns of the per-token tensors; None means: as many as the longest answer has.
    """

    prompts: ShapePolicy = field(default_factory=DynamicShapes)
    sequences: ShapePolicy = field(default_factory=DynamicShapes)
    answer_width: int | None = None

    @property
    def may_vary(self) -> bool:
        return self.answer_width is None

    def answers(self, longest: int) -> int:
        """Columns for answers of which the longest has `longest` tokens."""
        return longest if self.answer_width is None else self.answer_width


def choose_buckets(lengths: Sequence[int], count: int, multiple_of: int) -> tuple[int, ...]:
    """At most `count` lengths, multiples of `multiple_of`, that pad rows of these `lengths` the least.

    Exact, by dynamic programming over the lengths that occur: each row goes to the first bucket that holds it, and
    the padded tokens of all rows together are least. Ascending; the last one holds the longest row.

    Raises:
        ValueError: there are no lengths.
    """
    if not lengths:
        raise ValueError("buckets are chosen from the lengths of the data, and there are none")
    # quadratic in the number of widths: of long contexts not every one is tried
    multiple_of *= 1 + max(lengths) // (MOST_WIDTHS * multiple_of)
    rows = Counter(round_up(length, multiple_of) for length in lengths)
    widths = sorted(rows)
    upto = [0]  # rows no longer than widths[i - 1]
    for width in widths:
        upto.append(upto[-1] + rows[width])
    # cheapest[i]: (padded length of the rows in the first i widths, their buckets) with the buckets so far
    cheapest: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    cheapest += [(upto[i] * widths[i - 1], (widths[i - 1],)) for i in range(1, len(widths) + 1)]
    for _ in range(min(count, len(widths)) - 1):
        cheapest = [
            min(
                [cheapest[i]]
                + [
                    (cheapest[j][0] + (upto[i] - upto[j]) * widths[i - 1], (*cheapest[j][1], widths[i - 1]))
                    for j in range(1, i)
                ]
            )
            for i in range(len(widths) + 1)
        ]
    return cheapest[-1][1]


def padding_share(lengths: Sequence[int], policy: ShapePolicy) -> float:
    """Share (0 to 1) of padding in rows of these `lengths`, each padded for itself."""
    padded = sum(policy.pad_length(length) for length in lengths)
    return 1 - sum(lengths) / padded if padded else 0.0


def round_up(length: int, multiple_of: int) -> int:
    """The first multiple of `multiple_of` that is no less than `length`."""
    return -(-length // multiple_of) * multiple_of
