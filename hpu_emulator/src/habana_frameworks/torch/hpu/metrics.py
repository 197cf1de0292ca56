"""Counters of the device's software; the emulator has the one for graph compilations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from habana_torch_plugin_emulator import _C, accounting

KNOWN = ("graph_compilation",)


class Metric:
    """`stats()` gives (name, value) pairs. Nothing is compiled here, so the times are zero."""

    def __init__(self, count: accounting.GraphCount | None = None) -> None:
        self._count = count

    def stats(self) -> list[tuple[str, int]]:
        number = _C.accounting_counts()["distinct"] if self._count is None else self._count.distinct
        return [("TotalNumber", number), ("TotalTime", 0), ("AvgTime", 0)]


def _check(name: str) -> None:
    if name not in KNOWN:
        raise NotImplementedError(f"hpu.metrics: the emulator has {', '.join(KNOWN)}, not {name!r}")


def metric_global(name: str) -> Metric:
    """Counts from the first call on (from the start of the process under HPU_EMULATOR_GRAPHS)."""
    _check(name)
    if not _C.accounting_active():
        accounting.start()
    return Metric()


@contextmanager
def metric_localcontext(name: str) -> Iterator[Metric]:
    """Counts what the block runs."""
    _check(name)
    with accounting.count_graphs() as count:
        yield Metric(count)
