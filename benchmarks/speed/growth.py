"""How the cost of an update of PPO and of an epoch of SFT grows with the model, the batch, the length and the processes.

Along each axis one number changes and the rest stays that of `BASE`. Each distinct size is measured once, by the sides and
with the proof of equal work of the comparison; a side works through all sizes in one process. Lengths are even quantiles
of their distributions, and every turn answers the same prompts: twice the batch or the limit is twice the tokens.

Along `processes` our side runs in that many processes that torchrun started, with the same batch over all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from comparison import Rates, Turn, log_of, take_turn
from growth_report import draw, exponents, report
from kept_runs import load, this_run, write
from sides import PEERS, Running, sides
from table import WORK, Row, loss_difference, phase_flops, phase_shares, unequal_losses, unequal_work
from team import OF_EACH
from workload import Size, make_materials

#: what stays the same along an axis; smaller batches than the comparison's, so that all sizes take minutes
BASE = Size(batch=16, prompts=16, longest_example=256, example_batch=16, even=1)
AXES: dict[str, tuple[int, ...]] = {
    "hidden": (128, 256, 512),
    "batch": (16, 32, 64),
    "length": (32, 64, 128, 256),
    "processes": (1, 2),
}
#: rows of the batch on which losses are compared
CHECK_BATCH = 4
PPO = Row("ppo", "TRL 1.12 PPO", "separate bf16", "CPU s per update", "ppo")
OURS = {"ppo": PPO.ours, "sft": "SFT defaults"}
UNIT = {"ppo": PPO.unit, "sft": "CPU s per epoch"}


def plan(words: Sequence[str], base: Size) -> dict[str, tuple[int, ...]]:
    """{axis: its numbers} that words such as `hidden` or `batch=16,32` ask for; all axes without any.

    Raises:
        ValueError: no such axis, or numbers that cannot be measured.
    """
    found: dict[str, tuple[int, ...]] = {}
    for word in words or AXES:
        axis, given, numbers = word.partition("=")
        if axis not in AXES:
            raise ValueError(f"{word}: the axes are {', '.join(AXES)}")
        if axis in found:
            raise ValueError(f"{word}: {axis} is named twice; give all its numbers in one word")
        if given and not all(number.isdecimal() and int(number) for number in numbers.split(",")):
            raise ValueError(f"{word}: must be {axis}=NUMBER,NUMBER,… with numbers from 1 on")
        values = tuple(dict.fromkeys(map(int, numbers.split(",")))) if given else AXES[axis]
        for value in values:
            size = at(base, axis, value)
            rows = (size.minibatch, size.batch, size.example_batch, min(CHECK_BATCH, size.batch))
            if axis == "processes" and any(count % value for count in rows):
                raise ValueError(
                    f"processes={value}: must divide minibatch={size.minibatch}, batch={size.batch}, "
                    f"example_batch={size.example_batch} and the {rows[-1]} rows of the check"
                )
        found[axis] = values
    return found


def at(base: Size, axis: str, value: int) -> Size:
    """The size at `value` of an axis; processes do the work of the base.

    `batch`: answers an update, and examples a step. `length`: of the longest answer; examples are 4 times as long.
    """
    base = replace(base, prompts=base.batch)
    if axis == "hidden":
        return replace(base, hidden=value)
    if axis == "batch":
        return replace(base, batch=value, prompts=value, example_batch=value)
    if axis == "length":
        return replace(base, answer=value, longest_example=4 * value)
    return base


def grow(arguments: argparse.Namespace) -> int:
    """Measure along the axes and write the results after each size; 0 if the sides did the same work at all of them."""
    return Growth(arguments).measure()


@dataclass
class Work:
    """One side at one size: what it said when it was ready, and its turns, the first `warm` of which do not count."""

    ready: Turn
    turns: list[Turn]
    warm: int

    @property
    def counted(self) -> list[Turn]:
        return self.turns[self.warm :]


class Growth:
    """A run along the axes, and what it has found so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.base: Size = arguments.size
        self.axes: dict[str, tuple[int, ...]] = arguments.plan
        self.stages: list[str] = list(dict.fromkeys(arguments.stages))
        self.turns: int = arguments.turns
        self.work: Path = arguments.work
        self.results: Path = arguments.results
        self.rates = Rates()
        self.rates.measure()
        self.found: dict[str, Any] = {
            "run": {**this_run(self.base, self.turns, BASE), "load": []},
            "base": facts_of(at(self.base, "processes", 1)),
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "points": [],
            "exponents": [],
            "processes": [],
            "unequal": [],
        }

    def measure(self) -> int:
        """All stages along all axes."""
        sizes = {axis: [at(self.base, axis, value) for value in self.axes[axis]] for axis in self.axes}
        distinct = list(dict.fromkeys(size for axis in sizes if axis != "processes" for size in sizes[axis]))
        peer = (PEERS / "trl-1.12").is_dir()
        if not peer and distinct and "ppo" in self.stages:
            print(
                "TRL 1.12 is not below build/peers (make bench-growth installs it): its side is left out",
                file=sys.stderr,
            )
        names = {"ppo": [PPO.theirs, PPO.ours] if peer else [PPO.ours], "sft": [OURS["sft"]]}
        for stage in self.stages if distinct else ():
            self.along_sizes(stage, distinct, names[stage])
        for stage in self.stages if "processes" in self.axes else ():
            self.along_processes(stage, sizes["processes"][0])
        print((self.results / "growth.md").read_text())
        for line in self.found["unequal"]:
            print("NOT EQUAL", line)
        return 1 if self.found["unequal"] else 0

    def along_sizes(self, stage: str, sizes: Sequence[Size], names: Sequence[str]) -> None:
        """Each side's turns at each size. TRL's first turn counts, and is its only one: it follows the checked steps."""
        materials = [self.materials(size) for size in sizes]
        plans = {name: (0, 1) if name == PPO.theirs else (1, self.turns) for name in names}
        running: dict[str, Running] = {}
        try:
            for name, (warm, counted) in plans.items():
                running[name] = self.start(name, materials, warm + counted, log_of(self.work, name))
            for side in running.values():
                side.wait_until_ready()
            for number, size in enumerate(sizes):
                self.rates.measure()
                done = {}
                for name, side in running.items():
                    ready = side.turn() if number else side.ready
                    turns = [take_turn(side) for _ in range(sum(plans[name]))]
                    done[name] = Work(ready, turns, plans[name][0])
                self.finished(stage, size, done)
        finally:
            for side in running.values():
                side.stop()

    def along_processes(self, stage: str, size: Size) -> None:
        """Our side in one and more processes, turn and turn about."""
        name, counts = OURS[stage], self.axes["processes"]
        materials = [self.materials(size)]  # before any process reads them
        running: dict[int, Running] = {}
        done: dict[int, Work] = {}
        try:
            for count in counts:
                log = log_of(self.work, f"{name} {count} processes")
                turns = 1 + self.turns
                running[count] = self.start(name, materials, turns, log, processes=count)
            for count, side in running.items():
                side.wait_until_ready()
                done[count] = Work(side.ready, [], 1)
            for _ in range(1 + self.turns):
                for count, side in running.items():
                    done[count].turns.append(take_turn(side))
        finally:
            for side in running.values():
                side.stop()
        first = done[counts[0]]
        for count, work in done.items():
            self.found["unequal"] += unequal(f"{stage} in {count} processes", "all", work, first)
            self.found["processes"].append(in_processes(stage, count, work, first))
        self.write()

    def start(self, name: str, materials: Sequence[Path], turns: int, log: Path, **options: Any) -> Running:
        rows = min(CHECK_BATCH, self.base.batch)
        return Running(sides()[name], materials, turns, log, check_batch=rows, **options)

    def materials(self, size: Size) -> Path:
        """The models and data of a size."""
        name = f"growth-{size.hidden}-{size.batch}-{size.answer}"
        make_materials(self.work / name, size)
        return self.work / name

    def finished(self, stage: str, size: Size, done: dict[str, Work]) -> None:
        """All sides have taken their turns at this size."""
        difference = None
        if PPO.theirs in done:
            ours, theirs = done[PPO.ours], done[PPO.theirs]
            difference = loss_difference(PPO, ours.ready, theirs.ready)
            name = f"ppo at hidden={size.hidden} batch={size.batch} length={size.answer}"
            self.found["unequal"] += unequal(name, PPO.check, ours, theirs)
        for name, work in done.items():
            found = point(stage, name, size, work.counted, self.rates.best)
            self.found["points"].append({**found, "losses_differ": difference})
        self.write()

    def write(self) -> None:
        """What was found so far."""
        points = self.found["points"]
        for axis, values in self.axes.items():
            members = [facts_of(at(self.base, axis, value)) for value in values]
            for found in points:
                if axis != "processes" and found["size"] in members and axis not in found["along"]:
                    found["along"].append(axis)
        self.found["exponents"] = exponents(points)
        self.found["run"]["load"].append(load())
        write(self.results / "growth.json", json.dumps(self.found, indent=1) + "\n")
        write(self.results / "growth.md", report(self.found))
        if self.found["exponents"]:
            draw(points, self.results / "growth.png")


def unequal(name: str, check: str, ours: Work, theirs: Work) -> list[str]:
    """What two sides did not do alike in the turns that both took, and in the checked steps."""
    row = Row(name, "theirs", "ours", "", check)
    both = min(len(ours.turns), len(theirs.turns))
    lines = unequal_work(row, {"ours": ours.turns[:both], "theirs": theirs.turns[:both]})
    return lines + unequal_losses(name, loss_difference(row, ours.ready, theirs.ready))


def facts_of(size: Size) -> dict[str, int]:
    """What of a size changes along the axes."""
    return {
        "hidden": size.hidden,
        "weights": size.parameters,
        "batch": size.batch,
        "answer": size.answer,
        "longest_example": size.longest_example,
    }


def point(
    stage: str, name: str, size: Size, turns: Sequence[Turn], rates: dict[str, float]
) -> dict[str, Any]:
    """One side at one size: medians of the counted turns. share: of the matmul limit that the needful products reach."""
    side = sides()[name]
    rate = rates["bf16" if side.bf16 else "fp32"]
    flops = [sum(phase_flops(side, size, turn).values()) for turn in turns]
    shares = [done / turn["cpu"] / rate for done, turn in zip(flops, turns, strict=True)]
    return {
        "stage": stage,
        "side": name if name == PPO.theirs else "ours",
        "size": facts_of(size),
        "along": [],
        "cpu": round(median(turn["cpu"] for turn in turns), 3),
        "unit": UNIT[stage],
        "turns": [round(turn["cpu"], 3) for turn in turns],
        "phases": phase_shares(side, size, list(turns), rates) if stage == "ppo" else {},
        "flops": round(median(flops)),
        "share": round(median(shares), 3),
        "work": {fact: turns[-1][fact] for fact in WORK if fact in turns[-1]},
    }


def in_processes(stage: str, count: int, work: Work, first: Work) -> dict[str, Any]:
    """Our side in `count` processes: medians of the counted turns; `each` is a list over processes, in seconds.

    waiting: for the other or for a collective to end; delayed: for a core.
    """
    turns = work.counted
    each = [turn.get("processes", [turn]) for turn in turns]

    def of_each(name: str) -> list[float]:
        return [round(median(processes[rank][name] for processes in each), 3) for rank in range(count)]

    return {
        "stage": stage,
        "processes": count,
        "wall": round(median(turn["wall"] for turn in turns), 3),
        "cpu": round(median(turn["cpu"] for turn in turns), 3),
        "each": {name: of_each(name) for name in OF_EACH},
        "losses_differ": loss_difference(Row("", "", "", "", "all"), work.ready, first.ready),
        "work": {fact: turns[-1][fact] for fact in WORK if fact in turns[-1]},
    }
