"""Averages of what happens between two log lines, over micro-batches and processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class RunningAverages:
    """Sums with their counts; the mean over all processes is worked out only when a line is logged.

    Sums stay on the device as tensors: nothing here makes the device wait. They are added to in place and set to zero
    at each line, so that every micro-batch does the same operations.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}
        self._since_flush: set[str] = set()

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float = 1.0) -> None:
        """Add `count` observations of `name` that sum to `total`."""
        self._since_flush.add(name)
        self._sums[name] = _added(self._sums.get(name), total)
        self._counts[name] = _added(self._counts.get(name), count)

    def flush(self, accelerator: Any) -> dict[str, float]:
        """The mean of each name over all processes; starts again from nothing.

        Every process must have added the same names since the last flush.
        """
        names = sorted(self._since_flush)
        if not names:
            return {}
        rows = [[float(self._sums[name]), float(self._counts[name])] for name in names]
        table = torch.tensor(rows, dtype=torch.float32, device=accelerator.device)
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table, reduction="sum")
        self.clear()
        means = (table[:, 0] / table[:, 1].clamp(min=1e-12)).tolist()
        return dict(zip(names, means, strict=True))

    @contextmanager
    def nothing_counts(self) -> Iterator[None]:
        """What is added inside is dropped at the end, but for the tensors that were made to hold it."""
        names = set(self._since_flush)
        kept = [
            {
                name: value.clone() if isinstance(value, torch.Tensor) else value
                for name, value in table.items()
            }
            for table in (self._sums, self._counts)
        ]
        try:
            yield
        finally:
            self.clear()
            self._since_flush = names
            for table, before in zip((self._sums, self._counts), kept, strict=True):
                for name, value in before.items():
                    table[name] = table[name].copy_(value) if isinstance(value, torch.Tensor) else value

    def clear(self) -> None:
        """Start again from nothing, keeping the tensors."""
        self._since_flush.clear()
        for table in (self._sums, self._counts):
            for name, value in list(table.items()):
                if isinstance(value, torch.Tensor):
                    value.zero_()
                else:
                    del table[name]


def _added(total: Any, value: torch.Tensor | float) -> Any:
    """`total` (None at first) plus `value`; a tensor is added to in place."""
    if not isinstance(value, torch.Tensor):
        return value if total is None else total + value
    value = value.detach().float()
    if total is None:
        total = torch.zeros_like(value)
    total += value
    return total


class TokenRate:
    """Real (not padding) tokens trained on per second, over all processes."""

    def __init__(self) -> None:
        self._count: torch.Tensor | None = None
        self._since: float | None = None

    def add(self, mask: torch.Tensor) -> None:
        """Count the real tokens of a micro-batch by its mask [B, T]."""
        if self._since is None:
            self._since = time.perf_counter()
        self._count = _added(self._count, mask.sum())

    def clear(self) -> None:
        """Start again from nothing, keeping the tensor."""
        self._since = None
        if self._count is not None:
            self._count.zero_()

    def flush(self, accelerator: Any) -> dict[str, float]:
        """The rate since the last flush; nothing when nothing was counted."""
        if self._since is None or self._count is None:
            return {}
        count = torch.tensor(float(self._count), device=accelerator.device)
        now = time.perf_counter()
        rate = float(accelerator.reduce(count, reduction="sum")) / max(now - self._since, 1e-9)
        self._count.zero_()
        self._since = now
        return {"speed/tokens_per_second": rate}


class PhaseTimer:
    """Wall seconds by phase of a PPO update, with the device waited for at both ends of each phase."""

    def __init__(self, synchronize: Any) -> None:
        self._synchronize = synchronize
        self._seconds: dict[str, float] = {}
        self._opened: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to phase `name`."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def open(self, name: str) -> None:
        """Begin phase `name` where it is not begun yet; `close` ends it. For what no block can enclose."""
        if self._opened is None:
            self._synchronize()
            self._opened = (name, time.perf_counter())

    def close(self) -> None:
        """End the phase that `open` began, if any."""
        if self._opened is not None:
            name, start = self._opened
            self._synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            self._opened = None

    def flush(self) -> dict[str, float]:
        """`time/PHASE` in seconds since the last flush, `time/total` their sum."""
        times = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return {**times, "time/total": sum(times.values())} if times else {}
