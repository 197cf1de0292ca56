"""The figures of a run: each metric at its first, last and best, and how to write a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_hw.report.panels import PPO, REWARD, SFT, Row, points
from rlhf_hw.report.plots import SMOOTH_ABOVE, smooth

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Measure:
    """A metric that belongs in the table of results."""

    column: str
    label: str
    better: Better
    percent: bool = False


@dataclass(frozen=True)
class Result:
    """A measure over a run; `best` is None where neither more nor less of it is better."""

    measure: Measure
    first: float
    last: float
    best: float | None
    best_step: float | None


MEASURES = (
    Measure("objective/scores", "Score", "higher"),
    Measure("objective/rlhf_reward", "Score less KL penalty", "higher"),
    Measure("objective/kl", "KL to the reference", "neither"),
    Measure("objective/kl_coef", "KL coefficient", "neither"),
    Measure("objective/entropy", "Entropy", "neither"),
    Measure("policy/approxkl", "KL of an update", "neither"),
    Measure("policy/clipfrac", "Tokens clipped", "neither", percent=True),
    Measure("value/loss", "Value loss", "lower"),
    Measure("value/explained_variance", "Explained variance of the value", "higher"),
    Measure("response/length_mean", "Response length", "neither"),
    Measure("response/eos_rate", "Responses that end by themselves", "neither", percent=True),
    Measure("speed/tokens_per_second", "Tokens per second", "neither"),
    Measure("eval_perplexity", "Held-out perplexity", "lower"),
    Measure("eval_accuracy", "Held-out accuracy", "higher", percent=True),
    Measure("eval_margin", "Held-out margin", "higher"),
    Measure("eval_chosen_mean", "Held-out reward of chosen answers", "neither"),
    Measure("eval_rejected_mean", "Held-out reward of rejected answers", "neither"),
    Measure("eval_loss", "Held-out loss", "lower"),
    Measure("accuracy", "Training accuracy", "higher", percent=True),
    Measure("margin", "Training margin", "higher"),
    Measure("loss", "Training loss", "lower"),
)

# What a reader wants to know first, in this order; four of them make the headline.
HEADLINES = (
    *("eval_perplexity", "eval_accuracy", "eval_margin", "objective/scores", "objective/kl"),
    *("response/eos_rate", "response/length_mean", "eval_loss", "loss"),
)
MOST_HEADLINES = 4

_NOISY = {s.column for theme in (SFT, REWARD, PPO) for panel in theme.panels for s in panel.series if s.noisy}


def results(rows: Sequence[Row]) -> list[Result]:
    """The measures that were logged. Noisy metrics of many points are read off their smoothed curve, as plotted."""
    is_ppo = any("objective/scores" in row or "objective/kl" in row for row in rows)
    found = []
    for measure in MEASURES:
        if is_ppo and measure.column == "loss":
            continue  # a sum of clipped surrogates, whose size says nothing
        steps, values = points(rows, measure.column)
        if not values:
            continue
        if len(values) > SMOOTH_ABOVE and measure.column in _NOISY:
            values = [float(value) for value in smooth(values)]
        best = best_step = None
        if measure.better != "neither":
            best = max(values) if measure.better == "higher" else min(values)
            best_step = steps[values.index(best)]
        found.append(Result(measure, values[0], values[-1], best, best_step))
    return found


def headlines(found: Sequence[Result]) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures that matter most."""
    by_column = {result.measure.column: result for result in found}
    chosen = [by_column[column] for column in HEADLINES if column in by_column][:MOST_HEADLINES]
    tiles = []
    for result in chosen:
        percent = result.measure.percent
        note = f"from {number(result.first, percent)}"
        tiles.append((result.measure.label, number(result.last, percent), note))
    return tiles


def number(value: float | None, percent: bool = False) -> str:
    """Four significant digits, or a percentage with one decimal; a dash where there is nothing."""
    if value is None:
        return "–"
    if percent:
        return f"{100 * value:.1f}%"
    if abs(value) >= 1e4:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
