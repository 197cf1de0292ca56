"""The two tables that a pipeline ends with: time and cost of each step, and what each has reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_hw.run_files import read_metrics

NOTHING = "-"


def results(folders: Mapping[int, Path]) -> dict[str, float | None]:
    """The last value of each figure that the steps logged; None where there is none.

    `average_reward`: mean score of PPO's last logged update; `reward_average_score`: of the chosen held-out answers.
    """
    rows = {number: read_metrics(folder).rows for number, folder in folders.items()}
    return {
        "epochs": _last(rows.get(1, []), "epoch"),
        "perplexity": _last(rows.get(1, []), "eval_perplexity"),
        "reward_average_score": _last(rows.get(2, []), "eval_chosen_mean"),
        "reward_accuracy": _last(rows.get(2, []), "eval_accuracy"),
        "average_reward": _last(rows.get(3, []), "objective/scores"),
    }


def tables(
    name: str,
    seconds: Mapping[int, float | None],
    found: Mapping[str, float | None],
    price_per_hour: float | None,
) -> str:
    """Both tables as Markdown, in the columns that people know from guides to DeepSpeed-Chat."""
    times = [seconds.get(number) for number in (1, 2, 3)]
    total = sum(time for time in times if time is not None)
    cost = NOTHING if price_per_hour is None else f"{total / 3600 * price_per_hour:.2f}"
    epochs = found.get("epochs")
    first = duration(times[0]) + (f" ({epochs:.3g})" if epochs is not None and times[0] is not None else "")
    return "\n\n".join(
        [
            _markdown(
                ("", "Step 1 (epochs)", "Step 2", "Step 3", "Total", "Cost"),
                (name, first, duration(times[1]), duration(times[2]), duration(total), cost),
            ),
            _markdown(
                (
                    "",
                    "Step 1 (perplexity)",
                    "Step 2 (average score)",
                    "Step 2 (accuracy)",
                    "Step 3 (average reward)",
                ),
                (
                    name,
                    *(
                        _figure(found.get(key))
                        for key in ("perplexity", "reward_average_score", "reward_accuracy", "average_reward")
                    ),
                ),
            ),
        ]
    )


def duration(seconds: float | None) -> str:
    """41.3 s, 17m08s, 5h48m."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.5f}"


def _last(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if isinstance(row.get(column), (int, float))]
    return float(values[-1]) if values else None


def _markdown(heading: Sequence[str], cells: Sequence[str]) -> str:
    widths = [max(map(len, pair)) for pair in zip(heading, cells, strict=True)]

    def line(words: Sequence[str]) -> str:
        return "| " + " | ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)) + " |"

    return "\n".join(
        [line(heading), "|" + "|".join("-" * (width + 2) for width in widths) + "|", line(cells)]
    )
