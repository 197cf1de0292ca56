"""With what a run measured, and the rows it leaves: written as soon as they are finished, merged by one rule.

A run of some rows (`--only`) keeps the other rows of the file if they are of the same day, machine, versions and size of
the work; else it replaces them all. A run of all rows begins anew.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sides import PEERS, ROOT
from workload import Size

Row = dict[str, Any]
#: what must be the same for rows of two runs to stand in one table
COMPARABLE = ("date", "machine", "versions", "size")


def this_run(size: Size, turns: int, standard: Size) -> dict[str, Any]:
    """Date, machine, versions and settings of the run that begins now; `size` only in what is not standard."""
    now = datetime.datetime.now(datetime.timezone.utc)
    usual = asdict(standard)
    return {
        "date": str(now.date()),
        "started": now.strftime("%H:%M:%S UTC"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": versions(),
        "commit": commit(),
        "size": {name: value for name, value in asdict(size).items() if value != usual[name]},
        "turns": turns,
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that the sides are made of; the peers' as found where they are installed."""
    found = {"Python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "transformers", "accelerate", "trl")}
    for folder in sorted(PEERS.glob("trl-1.12/trl-*.dist-info")):
        found["PPO's trl"] = folder.name.removesuffix(".dist-info").partition("-")[2]
    for name in ("trl", "transformers", "accelerate"):
        for folder in sorted(PEERS.glob(f"classic/lib/python*/site-packages/{name}-*.dist-info")):
            found[f"classic {name}"] = folder.name.removesuffix(".dist-info").partition("-")[2]
    return found


def commit(root: Path = ROOT) -> str:
    """Which version of this project measured, as git names it; empty where there is no git to ask.

    `-dirty`: with changes that are not committed, those of the results apart, which the programs write themselves.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changes = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    try:
        return git("describe", "--always") + ("-dirty" if git(*changes) else "")
    except FileNotFoundError:
        return ""


def cpu_name() -> str:
    """What the system calls its processor."""
    description = Path("/proc/cpuinfo")
    for line in description.read_text().splitlines() if description.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def load() -> float:
    """Processes that wanted to run in the last minute, on average; 1 is this program."""
    return round(os.getloadavg()[0], 1)


def merged(
    old: Sequence[Row], run: dict[str, Any], new: Sequence[Row], order: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """(rows to stand in the file, old rows that do not stand beside those of `run`).

    An old row stays if no new one has its name, and if its run is comparable to `run`.
    """
    names = {row["name"] for row in new}
    others = [row for row in old if row["name"] not in names]
    kept = [row for row in others if comparable(row.get("run", {}), run)]
    place = {name: number for number, name in enumerate(order)}
    rows = sorted([*kept, *new], key=lambda row: place.get(row["name"], len(place)))
    return rows, [row for row in others if row not in kept]


def comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether numbers of these two runs may stand in one table."""
    return all(one.get(what) == other[what] for what in COMPARABLE)


def read_rows(file: Path) -> list[Row]:
    """The rows of a result file; none where there is no file.

    Raises:
        ValueError: it is no list of rows.
    """
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: is not JSON ({error}); move it away, or measure all rows") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise ValueError(f"{file}: is no list of rows with names; move it away, or measure all rows")
    return rows


def write(file: Path, text: str) -> None:
    """All of it or, if the program is stopped meanwhile, nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(text)
    part.replace(file)


class Record:
    """speed.json and speed.md, written anew at each finished group of rows.

    `old`: rows of earlier runs, of which those that are comparable stay.
    """

    def __init__(
        self,
        directory: Path,
        run: dict[str, Any],
        old: Sequence[Row],
        order: Sequence[str],
        report: Callable[[Sequence[Row]], str],
    ) -> None:
        self.directory = directory
        self.run = run
        self.order = order
        self.report = report
        self.rows, self.replaced = merged(old, run, [], order)

    def add(self, rows: Sequence[Row]) -> None:
        """These rows are finished."""
        stamped = [{**row, "run": {**self.run, "load": load()}} for row in rows]
        self.rows, _ = merged(self.rows, self.run, stamped, self.order)
        write(self.directory / "speed.json", json.dumps(self.rows, indent=1) + "\n")
        write(self.directory / "speed.md", self.report(self.rows))
