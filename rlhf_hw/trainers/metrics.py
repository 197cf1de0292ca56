"""Averages of what happens between two log lines, over micro-batches and processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class RunningAverages:
    """Sums with their counts; the mean over all processes is worked out only when a line is logged.

    Sums stay on the device as tensors: nothing here makes the device wait.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}

    def add(self, name: str, total: torch.Tensor | float, count: torch.Tensor | float = 1.0) -> None:
        """Add `count` observations of `name` that sum to `total`."""
        if isinstance(total, torch.Tensor):
            total = total.detach().float()
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def flush(self, accelerator: Any) -> dict[str, float]:
        """The mean of each name over all processes; starts again from nothing.

        Every process must have added the same names since the last flush.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        rows = [[float(self._sums[name]), float(self._counts[name])] for name in names]
        table = torch.tensor(rows, dtype=torch.float32, device=accelerator.device)
        if accelerator.num_processes > 1:
            table = accelerator.reduce(table, reduction="sum")
        self._sums.clear()
        self._counts.clear()
        means = (table[:, 0] / table[:, 1].clamp(min=1e-12)).tolist()
        return dict(zip(names, means, strict=True))


class TokenRate:
    """Real (not padding) tokens trained on per second, over all processes."""

    def __init__(self) -> None:
        self._count: torch.Tensor | float = 0.0
        self._since: float | None = None

    def add(self, mask: torch.Tensor) -> None:
        """Count the real tokens of a micro-batch by its mask [B, T]."""
        if self._since is None:
            self._since = time.perf_counter()
        self._count = self._count + mask.sum().detach()

    def flush(self, accelerator: Any) -> dict[str, float]:
        """The rate since the last flush; nothing when nothing was counted."""
        if self._since is None:
            return {}
        count = torch.tensor(float(self._count), device=accelerator.device)
        now = time.perf_counter()
        rate = float(accelerator.reduce(count, reduction="sum")) / max(now - self._since, 1e-9)
        self._count, self._since = 0.0, now
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
