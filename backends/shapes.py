"""How a device wants its batches shaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ShapePolicy(Protocol):
    """What the collators and the rollout ask about shapes."""

    @property
    def may_vary(self) -> bool:
        """True where a new shape costs nothing; False where each new shape compiles a new graph."""
        ...

    def pad_length(self, longest: int) -> int:
        """Length (tokens) to which a batch whose longest row has `longest` tokens is padded."""
        ...


@dataclass(frozen=True)
class DynamicShapes:
    """Pad to the longest row of the batch, rounded up to `multiple_of`."""

    multiple_of: int = 1

    @property
    def may_vary(self) -> bool:
        return True

    def pad_length(self, longest: int) -> int:
        return -(-longest // self.multiple_of) * self.multiple_of
