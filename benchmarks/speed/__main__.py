"""Speed against TRL: the same models and data on both sides, one thread, CPU seconds, turn and turn about.

    make bench                       # installs the peers into build/peers, then runs this
    python benchmarks/speed          # all rows; --only ppo-separate-bf16 for one

Every row has two sides, each in a process of its own. They take turns (an update of PPO, an epoch of SFT or of the reward
model): the first turn of each is not counted, the result is the ratio of the medians of the others. The program ends with
status 1 where the sides did not do the same work: the same tokens and optimizer steps in every turn, and equal losses of
three steps on one batch in fp32.

Writes speed.json (a list of rows) and speed.md (table, versions, phases) to --results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import memory
import torch
from sides import PEERS, ROOT, Running, sides
from table import AGAINST, LOSS_TOLERANCE, ROWS, Row, entry, loss_difference, phase_lines, unequal_work
from workload import Size, make_materials


def main() -> int:
    """Measure the rows and write the results; 0 if the sides of all of them did the same work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=[*(row.name for row in ROWS), memory.NAME]
    )
    parser.add_argument("--turns", type=int, default=3, help="counted turns of each side")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="models, data and logs")
    arguments = parser.parse_args()
    if not (PEERS / "trl-1.12").is_dir() or not (PEERS / "classic").is_dir():
        parser.error("the peers are not installed; run make bench")
    torch.set_num_threads(1)
    size = Size()
    make_materials(arguments.work / "materials", size)
    rows = [row for row in ROWS if arguments.only is None or row.name in arguments.only]
    rates: dict[str, list[float]] = {
        "fp32": [matmul_rate(torch.float32)],
        "bf16": [matmul_rate(torch.bfloat16)],
    }
    measured: dict[str, list[dict[str, Any]]] = {}
    ready: dict[str, dict[str, Any]] = {}
    for group in groups_of(rows):
        measure(group, arguments.work, arguments.turns, measured, ready, rates)
        for row in rows:
            if row.ours in group and row.theirs in group:
                print(json.dumps(entry(row, measured)), flush=True)
    best = {kind: max(found) for kind, found in rates.items()}
    faults = [line for row in rows for line in unequal_work(row, measured)]
    differences = {row.name: loss_difference(row, ready[row.ours], ready[row.theirs]) for row in rows}
    faults += [
        f"{name}: losses of one batch differ by {found:.1e} (relative), more than {LOSS_TOLERANCE:.0e}"
        for name, found in differences.items()
        if found is not None and not found <= LOSS_TOLERANCE
    ]
    table = [entry(row, measured) for row in rows]
    if arguments.only is None or memory.NAME in arguments.only:
        table.append(memory.measure())
    text = report(rows, table, measured, ready, differences, best, size, arguments)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "speed.json").write_text(json.dumps(table, indent=1) + "\n")
    (arguments.results / "speed.md").write_text(text)
    print(text)
    for line in faults:
        print("NOT EQUAL", line)
    return 1 if faults else 0


def groups_of(rows: list[Row]) -> list[list[str]]:
    """Sides that take turns together: those of rows that have one in common."""
    groups: list[list[str]] = []
    for row in rows:
        mine = next((group for group in groups if row.ours in group or row.theirs in group), None)
        if mine is None:
            groups.append(mine := [])
        mine += [name for name in (row.theirs, row.ours) if name not in mine]
    return groups


def measure(
    group: list[str],
    work: Path,
    turns: int,
    measured: dict[str, list[dict[str, Any]]],
    ready: dict[str, dict[str, Any]],
    rates: dict[str, list[float]],
) -> None:
    """Start the sides of a group, let them take turns, stop them."""
    known = sides(work / "materials")
    running: list[Running] = []
    try:
        for name in group:
            log = work / f"{name.replace(' ', '-')}.log"
            running.append(Running(known[name], work / "materials", turns + 2, log))
            ready[name] = running[-1].ready
        for number in range(turns + 1):
            for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                rates[kind].append(matmul_rate(dtype))
            for side in running:
                found = side.turn()
                print(f"{side.side.name}: {found['cpu']:.2f} CPU s", file=sys.stderr, flush=True)
                if number:
                    measured.setdefault(side.side.name, []).append(found)
    finally:
        for side in running:
            side.stop()


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


def report(
    rows: list[Row],
    table: list[dict[str, Any]],
    measured: dict[str, list[dict[str, Any]]],
    ready: dict[str, dict[str, Any]],
    differences: dict[str, float | None],
    rates: dict[str, float],
    size: Size,
    arguments: argparse.Namespace,
) -> str:
    """The result for people to read."""
    known = sides(arguments.work / "materials")
    load = os.getloadavg()[0]
    lines = [
        "# Speed against TRL",
        "",
        f"{datetime.date.today()}, {cpu_name()}, {os.cpu_count()} cores, load {load:.1f} at the end (1 is this program). "
        f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}, "
        f"accelerate {version('accelerate')}; the classic side: transformers 4.45.2, accelerate 1.0.1. One thread, CPU "
        f"seconds, medians of {arguments.turns} turns after one that is not counted, the sides turn and turn about.",
        "",
        "| row | against | theirs | ours | ratio | unit | each turn: theirs / ours | losses differ by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, found in zip(rows, table, strict=False):
        each = " / ".join(
            " ".join(f"{turn['cpu']:.1f}" for turn in measured[name]) for name in (row.theirs, row.ours)
        )
        difference = differences[row.name]
        shown = "no such model there" if difference is None else f"{difference:.0e}"
        lines.append(
            f"| {row.name} | {found['against']} | {found['theirs']:.2f} | {found['ours']:.2f} | "
            f"**{found['ratio']:.2f}** | {row.unit} | {each} | {shown} |"
        )
    lines += [
        f"| {found['name']} | {found['against']} | {found['theirs']} | {found['ours']} | **{found['ratio']:.2f}** | "
        f"{found['unit']} at the peak; ours / theirs, the less the better | | |"
        for found in table[len(rows) :]
    ]
    lines += [
        "",
        f"Matrix products in one thread: {rates['fp32'] / 1e9:.0f} GFLOP/s in fp32, {rates['bf16'] / 1e9:.0f} in bf16. "
        "Phases of a PPO update, in CPU seconds, with the share of that limit that its needful products (weights times "
        "real tokens) come to:",
        "",
        "| side | rollout | scoring | optimisation |",
        "|---|---|---|---|",
    ]
    for name, turns in measured.items():
        if "phases" in turns[0]:
            phases = phase_lines(known[name], size, turns, rates)
            shown = " | ".join(f"{seconds:.2f} ({share:.0%})" for seconds, share in phases.values())
            lines.append(f"| {name if name in AGAINST else 'ours, ' + name} | {shown} |")
    lines += ["", "The work of each turn, the same on both sides (the program fails otherwise):", ""]
    for row in rows:
        turn = measured[row.ours][-1]
        words = {"prompt_tokens": "prompt tokens", "answer_tokens": "answer tokens", "tokens": "tokens"}
        words |= {"targets": "targets", "optimizer_steps": "optimizer steps"}
        parts = [f"{turn[fact]} {word}" for fact, word in words.items() if fact in turn]
        lines.append(f"- {row.name}: {', '.join(parts)} (the last turn)")
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """What the system calls its processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
