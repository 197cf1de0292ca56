"""The comparison: rows of two sides each, which take turns at the same work."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memory
import torch
from kept_runs import Record, this_run
from report import report
from sides import Running, sides
from table import ROWS, Row, finished
from workload import Size, make_materials

Turn = dict[str, Any]
#: what is printed of a row as soon as it is finished
SHOWN = ("name", "against", "ours", "theirs", "ratio", "unit", "losses_differ", "unequal")


def compare(arguments: argparse.Namespace) -> int:
    """Measure the rows and write the results after each group; 0 if the sides of all of them did the same work."""
    wanted = [*(row.name for row in ROWS), memory.NAME]
    if arguments.only is not None:
        wanted = [name for name in wanted if name in arguments.only]
    rows = [row for row in ROWS if row.name in wanted]
    record = open_record(arguments)
    make_materials(arguments.work / "materials", arguments.size)
    rates = Rates()
    faults: list[str] = []
    for group in groups_of(rows):
        measured, ready = measure(group, arguments.work, arguments.turns, rates)
        done = [
            finished(row, sides(), measured, ready, arguments.size, rates.best)
            for row in rows
            if row.ours in group and row.theirs in group
        ]
        record.add(done)
        for found in done:
            faults += found["unequal"]
            print(json.dumps({name: found[name] for name in SHOWN}), flush=True)
    if memory.NAME in wanted:
        record.add([memory.measure()])
    print(record.report(record.rows))
    for line in faults:
        print("NOT EQUAL", line)
    return 1 if faults else 0


def open_record(arguments: argparse.Namespace) -> Record:
    """The result files; says which rows of an earlier run do not stay."""
    order = [*(row.name for row in ROWS), memory.NAME]
    run = this_run(arguments.size, arguments.turns, Size())
    record = Record(arguments.results, run, arguments.old, order, report)
    left = [row["name"] for row in record.replaced]
    if left:
        print(
            f"rows of another day, machine, size or other versions do not stay: {', '.join(left)}",
            file=sys.stderr,
        )
    return record


def groups_of(rows: Sequence[Row]) -> list[list[str]]:
    """Sides that take turns together: those of rows that have one in common."""
    groups: list[list[str]] = []
    for row in rows:
        mine = next((group for group in groups if row.ours in group or row.theirs in group), None)
        if mine is None:
            groups.append(mine := [])
        mine += [name for name in (row.theirs, row.ours) if name not in mine]
    return groups


def measure(
    group: Sequence[str], work: Path, turns: int, rates: Rates
) -> tuple[dict[str, list[Turn]], dict[str, Turn]]:
    """(counted turns of each side, what each said when it was ready). Starts them, lets them take turns, stops them."""
    known = sides()
    measured: dict[str, list[Turn]] = {name: [] for name in group}
    running: dict[str, Running] = {}
    try:
        for name in group:
            # more turns than are asked for: the end of training is no part of the last
            running[name] = Running(known[name], [work / "materials"], turns + 2, log_of(work, name))
        for side in running.values():
            side.wait_until_ready()
        for number in range(turns + 1):
            rates.measure()
            for name, side in running.items():
                found = take_turn(side)
                if number:
                    measured[name].append(found)
    finally:
        for side in running.values():
            side.stop()
    return measured, {name: side.ready for name, side in running.items()}


def take_turn(side: Running) -> Turn:
    """One turn, with a line about it on stderr."""
    found = side.turn()
    print(f"{side.side.name}: {found['cpu']:.2f} CPU s", file=sys.stderr, flush=True)
    return found


def log_of(work: Path, name: str) -> Path:
    """Where a side writes what it has to say."""
    return work / f"{name.replace(' ', '-')}.log"


class Rates:
    """Operations a CPU second of matrix products in one thread, by precision: the best of all that were measured."""

    def __init__(self) -> None:
        self.best = {"fp32": 0.0, "bf16": 0.0}

    def measure(self) -> None:
        for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            self.best[kind] = max(self.best[kind], matmul_rate(dtype))


def matmul_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """Operations a CPU second of a matrix product in one thread, best of five."""
    one, other = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for _ in range(4):
            one @ other
        best = max(best, 4 * 2.0 * size**3 / (time.process_time() - start))
    return best
