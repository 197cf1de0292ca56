"""From the points of growth.json to exponents, growth.md and growth.png."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import described, table

Point = dict[str, Any]
#: what cost is held against along each axis, for PPO and SFT: a fact of the size, and its name
AGAINST = {
    "hidden": {"ppo": ("weights", "weights"), "sft": ("weights", "weights")},
    "batch": {"ppo": ("batch", "answers an update"), "sft": ("batch", "examples a step")},
    "length": {"ppo": ("answer", "longest answer"), "sft": ("longest_example", "longest example")},
}
PHASES = {"rollout": "rollout", "score": "scoring", "optimise": "optimisation"}
STAGES = {"ppo": "an update of PPO", "sft": "an epoch of SFT"}


def slope(pairs: Sequence[tuple[float, float]]) -> float | None:
    """The exponent a of y = c·x^a that fits (x, y) best: least squares of logarithms. None of fewer than two x.

    Raises:
        ValueError: a number that has no logarithm.
    """
    if any(x <= 0 or y <= 0 for x, y in pairs):
        raise ValueError(f"no exponent of numbers that are not positive: {list(pairs)}")
    logs = [(math.log(x), math.log(y)) for x, y in pairs]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def line_of(points: Sequence[Point], stage: str, side: str, axis: str) -> list[Point]:
    """The points of a side along an axis, by the number that changes."""
    fact, _ = AGAINST[axis][stage]
    found = [p for p in points if p["stage"] == stage and p["side"] == side and axis in p["along"]]
    return sorted(found, key=lambda p: p["size"][fact])


def sides_of(points: Sequence[Point], stage: str) -> list[str]:
    return list(dict.fromkeys(p["side"] for p in points if p["stage"] == stage))


def exponents(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each stage, axis and side with two points or more: the exponents of cost, phases and needful operations."""
    found = []
    for stage in STAGES:
        for axis in AGAINST:
            for side in sides_of(points, stage):
                line = line_of(points, stage, side, axis)
                fact, name = AGAINST[axis][stage]
                at = [p["size"][fact] for p in line]
                cost = slope([(x, p["cpu"]) for x, p in zip(at, line, strict=True)])
                if cost is None:
                    continue
                phases = {
                    phase: round(
                        slope([(x, p["phases"][phase][0]) for x, p in zip(at, line, strict=True)]) or 0.0, 2
                    )
                    for phase in line[0]["phases"]
                }
                work = slope([(x, p["flops"]) for x, p in zip(at, line, strict=True)]) or 0.0
                entry = {"stage": stage, "axis": axis, "against": name, "side": side, "points": len(line)}
                found.append({**entry, "cost": round(cost, 2), "phases": phases, "needful": round(work, 2)})
    return found


def report(found: dict[str, Any]) -> str:
    """growth.md: run, exponents, points, processes. All that it says is in growth.json."""
    points, run, base = found["points"], found["run"], found["base"]
    lines = ["# How cost grows", "", described(run), ""]
    lines += [
        f"Along each axis one number changes; the others are hidden {base['hidden']} ({base['weights'] / 1e6:.1f}M weights), "
        f"{base['batch']} answers an update or examples a step, answers of at most {base['answer']} tokens, examples of at most "
        f"{base['longest_example']}. "
        "One thread, CPU seconds, medians of our turns after one that is not counted; TRL's one turn. Ours runs in bf16, TRL's PPO "
        "in fp32, its only precision: shares are of each precision's own limit. Exponents are slopes of "
        "logarithms: 1 is as fast as what is named, 2 its square. Needful is the exponent of the matrix products that the real "
        "tokens need; where cost grows more slowly, fixed costs are left behind, where faster, something is wasted.",
    ]
    if found["unequal"]:
        lines += ["", "**The sides did not do the same work; these numbers prove nothing:**", ""]
        lines += [f"- {line}" for line in found["unequal"]]
    for stage, words in STAGES.items():
        fitted = [e for e in found["exponents"] if e["stage"] == stage]
        measured = [p for p in points if p["stage"] == stage]
        if measured:
            lines += ["", f"## {words[0].upper()}{words[1:]}", ""]
            lines += [*exponent_table(fitted), ""] if fitted else []
            lines += point_table(stage, measured)
    if found["exponents"]:
        lines += ["", "![CPU seconds along each axis](growth.png)"]
    lines += processes(found["processes"])
    return "\n".join(lines) + "\n"


def exponent_table(fitted: Sequence[dict[str, Any]]) -> list[str]:
    names = list(fitted[0]["phases"])
    rows = [
        [
            f"{e['against']} ({e['points']} points)",
            e["side"],
            f"**{e['cost']:.2f}**",
            f"{e['needful']:.2f}",
            *(f"{e['phases'][name]:.2f}" for name in names),
        ]
        for e in fitted
    ]
    return table(("exponent in", "side", "cost", "needful", *(PHASES[name] for name in names)), rows)


def point_table(stage: str, measured: Sequence[Point]) -> list[str]:
    """A line a size and side."""
    ppo = stage == "ppo"
    answer = ("longest answer", "answer") if ppo else ("longest example", "longest_example")
    tokens = ("prompt_tokens", "answer_tokens") if ppo else ("tokens", "targets")
    head = ["weights", "hidden", "answers an update" if ppo else "examples a step", answer[0]]
    head += [
        "tokens: prompts + answers" if ppo else "tokens, of which learnt",
        "side",
        measured[0]["unit"],
        "share of limit",
    ]
    head += [*PHASES.values(), "times ours", "losses differ by"] if ppo else ["tokens per CPU s"]
    rows = []
    for p in measured:
        size, work = p["size"], p["work"]
        row = [f"{size['weights'] / 1e6:.1f}M", str(size["hidden"]), str(size["batch"]), str(size[answer[1]])]
        row += [f"{work[tokens[0]]} + {work[tokens[1]]}" if ppo else f"{work[tokens[0]]}, {work[tokens[1]]}"]
        row += [p["side"], f"{p['cpu']:.2f}", f"{p['share']:.0%}"]
        if ppo:
            row += [f"{seconds:.2f} ({share:.0%})" for seconds, share in p["phases"].values()]
            row += compared(p, measured)
        else:
            row.append(f"{work['tokens'] / p['cpu']:.0f}")
        rows.append(row)
    return table(head, rows)


def compared(p: Point, measured: Sequence[Point]) -> list[str]:
    """How many times our cost a side's is, and by how much its losses differ from ours; empty for ours."""
    ours = next((o for o in measured if o["side"] == "ours" and o["size"] == p["size"]), None)
    if p["side"] == "ours" or ours is None:
        return ["", ""]
    return [f"**{p['cpu'] / ours['cpu']:.2f}**", f"{p['losses_differ']:.0e}"]


def processes(found: Sequence[dict[str, Any]]) -> list[str]:
    """The same work in more processes."""
    if not found:
        return []
    rows = []
    for entry in found:
        one = next(e for e in found if e["stage"] == entry["stage"])
        each = entry["each"]
        shown = [
            " + ".join(f"{seconds:.2f}" for seconds in each[name]) for name in ("cpu", "waiting", "delayed")
        ]
        gain = one["wall"] / entry["wall"]
        share = gain * one["processes"] / entry["processes"]
        rows.append(
            [
                STAGES[entry["stage"]],
                str(entry["processes"]),
                f"{entry['wall']:.2f}",
                f"{entry['cpu']:.2f}",
                *shown,
                f"**{gain:.2f}** ({share:.0%})",
                f"{entry['losses_differ']:.0e}",
            ]
        )
    head = (
        "work",
        "processes",
        "wall s",
        "CPU s of all",
        "CPU s of each",
        "waiting s of each",
        "without a core s of each",
    )
    return [
        "",
        "## The same work in more processes",
        "",
        "Started by torchrun on this machine, gradients averaged by gloo, one thread each, the batch the same over all of "
        "them. Waiting is time in which a process had nothing to run: the other one or a collective was not done. Without a "
        "core is time in which it could have run and the machine had no core for it.",
        "",
        *table((*head, "times faster (of the ideal)", "losses differ by"), rows),
    ]


def draw(points: Sequence[Point], file: Path) -> None:
    """CPU seconds along each axis, logarithmic, with the exponent of each line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    fitted = {(e["stage"], e["axis"], e["side"]): e for e in exponents(points)}
    panels = list(dict.fromkeys((stage, axis) for stage, axis, _ in fitted))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False)
    for (stage, axis), panel in zip(panels, axes.flat, strict=False):
        fact, name = AGAINST[axis][stage]
        for side in sides_of(points, stage):
            if (stage, axis, side) not in fitted:
                continue
            line = line_of(points, stage, side, axis)
            label = f"{side}: exponent {fitted[stage, axis, side]['cost']:.2f}"
            panel.plot([p["size"][fact] for p in line], [p["cpu"] for p in line], marker="o", label=label)
        drawn = [p for p in points if p["stage"] == stage and axis in p["along"]]
        at = sorted({p["size"][fact] for p in drawn})
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="CPU s", title=STAGES[stage])
        panel.xaxis.set_major_locator(FixedLocator(at))
        panel.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x / 1e6:.1f}M" if x > 1e5 else f"{x:.0f}")
        )
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        # from half the least to four times the most, so that flat lines look flat and the legend hides none
        panel.set_ylim(min(p["cpu"] for p in drawn) / 2, max(p["cpu"] for p in drawn) * 4)
        panel.grid(True, alpha=0.3)
        panel.legend(fontsize=8, loc="upper left")
    for panel in list(axes.flat)[len(panels) :]:
        panel.set_visible(False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
