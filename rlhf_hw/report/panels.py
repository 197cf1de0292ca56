"""What is drawn: for each theme (SFT, reward model, PPO) its panels, and the metrics each panel shows.

A panel whose metrics were never logged is left out, and so is a theme none of whose panels remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

# One colour a meaning, throughout: what is trained on, what is held out, and two more.
TRAIN, HELD_OUT, THIRD, FOURTH, FIFTH = "#2f6fb0", "#d6702a", "#3d9a6b", "#8a63b5", "#b09a2f"


@dataclass(frozen=True)
class Series:
    """One metric as a line."""

    column: str
    label: str
    color: str = TRAIN
    held_out: bool = False  # few points: drawn with markers
    noisy: bool = True  # many points are smoothed; not those of a schedule
    right_axis: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    ylabel: str
    series: tuple[Series, ...]
    reference: float | None = None  # a dashed line at a value that means something (chance, zero)
    floor: float | None = None  # what lies below is not shown: one early outlier must not flatten the rest
    percent: bool = False
    band: tuple[str, str] | None = None  # columns of a minimum and a maximum, shaded
    stacked: bool = False  # bars, the series on top of each other
    right_label: str = ""


@dataclass(frozen=True)
class Theme:
    """One picture; it belongs to a run that logged at least one of the `signs`."""

    name: str
    title: str
    signs: tuple[str, ...]
    panels: tuple[Panel, ...]


_LOSS = (Series("loss", "training"), Series("eval_loss", "held out", HELD_OUT, held_out=True, noisy=False))

SFT = Theme(
    "sft",
    "Supervised fine-tuning",
    ("loss", "eval_perplexity"),
    (
        Panel("Loss", "cross-entropy, nats per token", _LOSS),
        Panel(
            "Held-out perplexity",
            "perplexity",
            (Series("eval_perplexity", "held out", HELD_OUT, held_out=True, noisy=False),),
        ),
        Panel(
            "Learning rate", "learning rate", (Series("learning_rate", "learning rate", THIRD, noisy=False),)
        ),
        Panel("Gradient norm", "norm before clipping", (Series("grad_norm", "gradient norm", FOURTH),)),
    ),
)

REWARD = Theme(
    "reward",
    "Reward model",
    ("accuracy", "margin", "eval_accuracy", "eval_margin", "eval_chosen_mean"),
    (
        Panel("Pairwise loss", "−log σ(chosen − rejected)", _LOSS, reference=0.6931),
        Panel(
            "Accuracy",
            "pairs ranked rightly",
            (
                Series("accuracy", "training"),
                Series("eval_accuracy", "held out", HELD_OUT, held_out=True, noisy=False),
            ),
            reference=0.5,
            percent=True,
        ),
        Panel(
            "Margin",
            "chosen − rejected",
            (
                Series("margin", "training"),
                Series("eval_margin", "held out", HELD_OUT, held_out=True, noisy=False),
            ),
            reference=0.0,
        ),
        Panel(
            "Training rewards",
            "mean reward",
            (Series("chosen_mean", "chosen", THIRD), Series("rejected_mean", "rejected", FOURTH)),
        ),
        Panel(
            "Held-out rewards",
            "mean reward",
            (
                Series("eval_chosen_mean", "chosen", THIRD, held_out=True, noisy=False),
                Series("eval_rejected_mean", "rejected", FOURTH, held_out=True, noisy=False),
            ),
        ),
    ),
)

PPO = Theme(
    "ppo",
    "PPO",
    ("objective/scores", "objective/kl", "policy/approxkl"),
    (
        Panel(
            "Reward",
            "mean per response",
            (
                Series("objective/scores", "score"),
                Series("objective/rlhf_reward", "score − KL penalty", HELD_OUT),
            ),
        ),
        Panel(
            "KL to the reference",
            "nats per response",
            (
                Series("objective/kl", "KL"),
                Series("objective/kl_coef", "coefficient", HELD_OUT, noisy=False, right_axis=True),
            ),
            right_label="KL coefficient",
        ),
        Panel("Entropy", "nats per token", (Series("objective/entropy", "entropy", THIRD),)),
        Panel("Policy change", "approximate KL, nats", (Series("policy/approxkl", "approximate KL"),)),
        Panel(
            "Clipped",
            "tokens clipped",
            (Series("policy/clipfrac", "policy"), Series("value/clipfrac", "value", HELD_OUT)),
            percent=True,
        ),
        Panel("Probability ratio", "new / old", (Series("policy/ratio", "ratio"),), reference=1.0),
        Panel("Policy loss", "clipped objective", (Series("policy/loss", "policy loss"),), reference=0.0),
        Panel("Value loss", "squared error", (Series("value/loss", "value loss", FOURTH),)),
        Panel(
            "Explained variance of the value",
            "1 = perfect, 0 = a constant",
            (Series("value/explained_variance", "explained variance", FOURTH),),
            reference=0.0,
            floor=-1.0,
        ),
        Panel(
            "Response length",
            "tokens",
            (Series("response/length_mean", "mean", THIRD),),
            band=("response/length_min", "response/length_max"),
        ),
        Panel(
            "Responses that end by themselves",
            "with an end token",
            (Series("response/eos_rate", "EOS rate", THIRD),),
            percent=True,
        ),
        Panel(
            "Where the time goes",
            "seconds per update",
            (
                Series("time/rollout", "rollout", TRAIN),
                Series("time/score", "score", HELD_OUT),
                Series("time/forward", "log-probabilities", FIFTH),
                Series("time/advantage", "advantage", FOURTH),
                Series("time/optimise", "optimise", THIRD),
            ),
            stacked=True,
        ),
        Panel("Speed", "tokens per second", (Series("speed/tokens_per_second", "tokens/s"),)),
    ),
)


def points(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one metric, without the rows where it is missing or was not finite."""
    kept = [row for row in rows if is_number(row.get("step")) and is_number(row.get(column))]
    return [float(row["step"]) for row in kept], [float(row[column]) for row in kept]


def themes_of(rows: Sequence[Row]) -> list[Theme]:
    """The themes to draw for a run, each with the panels for which there is something to show.

    Every stage logs a loss; it makes an SFT picture only where nothing says that the run was another stage.
    """
    present = {column for row in rows for column, value in row.items() if is_number(value)}
    found = [theme for theme in (REWARD, PPO) if present.intersection(theme.signs)]
    if not found and present.intersection(SFT.signs):
        found = [SFT]
    drawn = []
    for theme in found:
        panels = tuple(panel for panel in theme.panels if any(s.column in present for s in panel.series))
        drawn.append(Theme(theme.name, theme.title, theme.signs, panels))
    return drawn


def is_number(value: Any) -> bool:
    """True and False are no numbers here, and neither is the null that stands for NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
