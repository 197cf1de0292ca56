"""Counting the graphs that a Gaudi would have compiled, and saying what made each of them new.

In lazy mode a graph is what runs between two flushes (`mark_step`, `.item()`, a copy to the host, a collective); in eager
mode each distinct operator call is one. `HPU_EMULATOR_GRAPHS=1` prints the report at exit; tests use `count_graphs()`.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import _C
from .locator import locate

ROWS_PRINTED = 40


def mark(reason: str) -> None:
    """Ends the graph being collected, as `mark_step` does. Nothing happens while nobody counts."""
    _C.accounting_mark(reason)


def start() -> None:
    """Counts from now on. What was counted before stays."""
    _C.accounting_set_locator(locate)
    _C.accounting_start()


def stop() -> None:
    """Counts no longer; the graph being collected ends here."""
    _C.accounting_stop()


@contextmanager
def paused(reason: str) -> Iterator[None]:
    """What runs inside is not counted: the replay of an HPU graph compiles nothing."""
    if not _C.accounting_active():
        yield
        return
    mark(reason)
    _C.accounting_stop()
    try:
        yield
    finally:
        _C.accounting_start()


class GraphCount:
    """What ran since `count_graphs()` was entered; after the block, what ran inside it."""

    def __init__(self) -> None:
        self._runs_before = {graph["id"]: graph["runs"] for graph in _C.accounting_graphs()}
        self._flushes_before = _C.accounting_counts()["flushes"]
        self._final: tuple[int, list[dict[str, Any]]] | None = None

    def _now(self) -> tuple[int, list[dict[str, Any]]]:
        if self._final is not None:
            return self._final
        ran = []
        for graph in _C.accounting_graphs():
            runs = graph["runs"] - self._runs_before.get(graph["id"], 0)
            if runs:
                ran.append(
                    {
                        **graph,
                        "runs": runs,
                        "first_flush": max(graph["first_flush"] - self._flushes_before, 1),
                    }
                )
        return _C.accounting_counts()["flushes"] - self._flushes_before, ran

    def _close(self) -> None:
        self._final = self._now()

    @property
    def flushes(self) -> int:
        """How many times a collected graph was sent to the device."""
        return self._now()[0]

    @property
    def distinct(self) -> int:
        """How many different graphs those were: what a Gaudi compiles, starting cold."""
        return len(self._now()[1])

    def graphs(self) -> list[dict[str, Any]]:
        """One record per graph, in order of first appearance.

        Keys: id, ops, runs, first_flush, cause_op, cause_shapes, cause_dtypes, location, flush_reason.
        """
        return self._now()[1]

    def mark(self) -> frozenset[int]:
        """The graphs known now, for `since`. Does not end the graph being collected."""
        return frozenset(graph["id"] for graph in self._now()[1])

    def since(self, mark: frozenset[int]) -> list[dict[str, Any]]:
        """The graphs that were new after `mark`: after warm-up there should be none."""
        return [graph for graph in self._now()[1] if graph["id"] not in mark]

    def report(self) -> str:
        flushes, graphs = self._now()
        return format_report(graphs, flushes)


@contextmanager
def count_graphs() -> Iterator[GraphCount]:
    """Counts the graphs of the block; within another count, and while the whole process is counted, those that it runs.

    with count_graphs() as count:
        train(steps=2)
        warm = count.mark()
        train(steps=10)
    assert not count.since(warm), count.report()
    """
    counting_already = _C.accounting_active()
    if counting_already:
        mark("count_graphs")
    else:
        _C.accounting_reset()  # a cold start: what an earlier count saw would have no cause here
        start()
    count = GraphCount()
    try:
        yield count
    finally:
        mark("count_graphs")
        count._close()
        if not counting_already:
            stop()


def cause(graph: dict[str, Any]) -> str:
    """One line: the operator at which this graph left every known one, and where that was."""
    if not graph["cause_op"]:
        return f"the beginning of a known graph, ended sooner by {graph['flush_reason']}"
    operands = ", ".join(
        f"{dtype.lower()}{shape}"
        for shape, dtype in zip(graph["cause_shapes"], graph["cause_dtypes"], strict=True)
    )
    place = f" in {graph['location']}" if graph["location"] else ""
    return f"{graph['cause_op']}({operands}){place}"


def format_report(graphs: list[dict[str, Any]], flushes: int, rows: int = ROWS_PRINTED) -> str:
    """The table that is printed at exit."""
    reasons = Counter(graph["flush_reason"] for graph in graphs)
    ended = ", ".join(f"{count} by {reason}" for reason, count in reasons.most_common())
    lines = [f"{len(graphs)} distinct graphs in {flushes} flushes" + (f" (ended {ended})" if ended else "")]
    if graphs:
        lines.append(f"{'graph':>6} {'flush':>6} {'runs':>6} {'ops':>6}  what made it new")
    for graph in graphs[:rows]:
        lines.append(
            f"{graph['id']:>6} {graph['first_flush']:>6} {graph['runs']:>6} {graph['ops']:>6}  {cause(graph)}"
        )
    if len(graphs) > rows:
        lines.append(f"{'':>6} and {len(graphs) - rows} more; HPU_EMULATOR_GRAPHS=<path> writes all of them")
    return "\n".join(lines)


def _rank() -> tuple[int, int]:
    environment = os.environ
    rank = environment.get("RANK") or environment.get("OMPI_COMM_WORLD_RANK") or "0"
    world = environment.get("WORLD_SIZE") or environment.get("OMPI_COMM_WORLD_SIZE") or "1"
    return int(rank), int(world)


def json_path(path: str) -> Path:
    """Where this process writes: with several processes the rank goes before the suffix."""
    rank, world = _rank()
    plain = Path(path)
    return plain if world == 1 else plain.with_name(f"{plain.stem}.rank{rank}{plain.suffix}")


def _report_at_exit(destination: str) -> None:
    if _C.accounting_active():
        stop()
    counts, graphs = _C.accounting_counts(), _C.accounting_graphs()
    if not counts["operators"]:
        return  # a launcher or a data loader's worker: it only imported torch
    rank, world = _rank()
    who = f"hpu emulator, rank {rank}: " if world > 1 else "hpu emulator: "
    print(who + format_report(graphs, counts["flushes"]), file=sys.stderr, flush=True)
    if destination:
        path = json_path(destination)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"rank": rank, "world_size": world, **counts, "graphs": graphs}, indent=1) + "\n"
        )


def count_for_the_process(destination: str) -> None:
    """Counts until exit, then prints the report; a non-empty `destination` is a file for the same as JSON."""
    start()
    atexit.register(_report_at_exit, destination)
