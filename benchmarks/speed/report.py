"""speed.md: the rows of speed.json for people to read. All that it says is in the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from table import WORK

HEADINGS = (
    "row",
    "against",
    "theirs",
    "ours",
    "ratio",
    "unit",
    "each turn: theirs / ours",
    "losses differ by",
    "run",
)


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Runs, table, phases and work of these rows, each with its `run`."""
    runs = runs_of(rows)
    lines = ["# Speed against TRL", ""]
    lines += [f"- Run {number}: {described(run)}" for number, run in enumerate(runs, 1)]
    lines += [
        "",
        "One thread, CPU seconds, medians of the turns after one that is not counted, the sides turn and turn about.",
        "",
        *table(HEADINGS, [cells(row, 1 + place_of(row["run"], runs)) for row in rows]),
    ]
    faults = [line for row in rows for line in row.get("unequal", [])]
    if faults:
        lines += ["", "**The sides did not do the same work; these rows prove nothing:**", ""]
        lines += [f"- {line}" for line in faults]
    lines += phases(rows, runs)
    worked = [row for row in rows if row.get("work")]
    if worked:
        lines += ["", "The work of each turn, the same on both sides (the program fails otherwise):", ""]
        lines += [f"- {row['name']}: {work_in_words(row['work'])} (the last turn)" for row in worked]
    return "\n".join(lines) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


def work_in_words(work: dict[str, int]) -> str:
    return ", ".join(f"{work[fact]} {word}" for fact, word in WORK.items() if fact in work)


def runs_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that the rows were measured in, each with the load of all its rows."""
    runs: list[dict[str, Any]] = []
    for row in rows:
        place = place_of(row["run"], runs)
        if place == len(runs):
            runs.append({**row["run"], "load": []})
        runs[place]["load"].append(row["run"]["load"])
    return runs


def place_of(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> int:
    """Which of `runs` began when `run` did; their number if none did."""
    names = [(other["date"], other["started"]) for other in runs]
    name = (run["date"], run["started"])
    return names.index(name) if name in names else len(names)


def described(run: dict[str, Any]) -> str:
    """Date, machine, versions of a run."""
    least, most = min(run["load"]), max(run["load"])
    loads = f"{least}" if least == most else f"{least} to {most}"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = f"; commit {run['commit']}" if run["commit"] else ""
    sizes = ", ".join(f"{name}={value}" for name, value in run["size"].items())
    return (
        f"{run['date']} {run['started']}, {run['machine']}, load {loads} (1 is this program); {versions}{commit}; "
        f"counted turns: {run['turns']}{f'; not the standard size: {sizes}' if sizes else ''}."
    )


def cells(row: dict[str, Any], run: int) -> list[str]:
    """A line of the table; memory's row has neither turns nor losses."""
    named = [row["name"], row["against"]]
    if "turns" not in row:
        unit = f"{row['unit']} at the peak; ours / theirs, the less the better"
        numbers = [str(row["theirs"]), str(row["ours"]), f"**{row['ratio']:.2f}**"]
        return [*named, *numbers, unit, "", "", str(run)]
    numbers = [f"{row['theirs']:.2f}", f"{row['ours']:.2f}", f"**{row['ratio']:.2f}**"]
    each = " / ".join(" ".join(f"{cpu:.1f}" for cpu in row["turns"][who]) for who in ("theirs", "ours"))
    difference = row["losses_differ"]
    shown = "no such model there" if difference is None else f"{difference:.0e}"
    return [
        *named,
        *numbers,
        row["unit"],
        each,
        shown if not row["unequal"] else f"{shown}; NOT EQUAL",
        str(run),
    ]


def phases(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[str]:
    """CPU seconds and shares of the limit of each side that has phases, in each run."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        run = 1 + place_of(row["run"], runs)
        for who, spent in row.get("phases", {}).items():
            side = row["sides"][who]
            shown = [f"{seconds:.2f} ({share:.0%})" for seconds, share in spent.values()]
            found.setdefault((side, run), [side, *shown, str(run)])
    if not found:
        return []
    limits = [row["limits"] for row in rows if row.get("phases")]
    fp32, bf16 = (max(limit[kind] for limit in limits) for kind in ("fp32", "bf16"))
    return [
        "",
        f"Matrix products in one thread: {fp32} GFLOP/s in fp32, {bf16} in bf16. Phases of a PPO update, in CPU seconds, "
        "with the share of that limit that its needful products (weights times real tokens) come to:",
        "",
        *table(("side", "rollout", "scoring", "optimisation", "run"), list(found.values())),
    ]
