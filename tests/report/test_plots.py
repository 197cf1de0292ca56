"""Which pictures are drawn from which metrics, and what smoothing does to a curve."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rlhf_hw.report import plots
from rlhf_hw.report.panels import points, themes_of
from rlhf_hw.report.plots import draw_comparison, draw_plots, smooth


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved while the test runs, to be asked what stands on it."""
    saved = []
    original = Figure.savefig

    def save_and_keep(figure, *args, **kwargs):
        saved.append(figure)
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save_and_keep)
    return saved


def visible_axes(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def axes_titled(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_each_stage_gets_its_own_picture_and_no_other(tmp_path, synthetic, stage):
    assert draw_plots(synthetic[stage](), tmp_path, "run") == [tmp_path / f"{stage}.png"]
    with Image.open(tmp_path / f"{stage}.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert draw_plots([], tmp_path, "run") == []
    assert draw_plots([{"step": 1, "train_runtime": 3.0}, {"step": 2, "loss": None}], tmp_path, "run") == []


def test_one_row_is_enough_for_a_picture(tmp_path, synthetic):
    for stage, make in synthetic.items():
        rows = [max(make(), key=len)]
        assert [path.stem for path in draw_plots(rows, tmp_path, "run")] == [stage]


def test_panels_without_metrics_are_left_out(tmp_path, figures):
    draw_plots([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], tmp_path, "run")
    assert [axes.get_title(loc="left") for axes in visible_axes(figures[0])] == ["Loss"]


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_every_panel_says_what_its_axes_are(tmp_path, synthetic, figures, stage):
    draw_plots(synthetic[stage](), tmp_path, "run")
    draw_comparison({"a": synthetic[stage](), "b": synthetic[stage](seed=7)}, tmp_path)
    for figure in figures:
        for axes in visible_axes(figure):
            assert axes.get_ylabel() or not len(axes.get_yticks())
            assert (
                axes.get_xlabel() or axes.get_title(loc="left") == ""
            )  # a right-hand axis shares its x axis


def test_every_metric_of_the_panels_is_a_line_or_a_bar(tmp_path, synthetic, figures):
    rows = synthetic["ppo"]()
    draw_plots(rows, tmp_path, "run")
    reward = axes_titled(figures[0], "Reward")
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["score", "score − KL penalty"]
    bars = axes_titled(figures[0], "Where the time goes")
    phases = ("rollout", "score", "forward", "advantage", "optimise")
    shown = ("rollout", "score", "log-probabilities", "advantage", "optimise")
    assert tuple(text.get_text() for text in bars.get_legend().get_texts()) == shown
    mean_total = np.mean([sum(row[f"time/{phase}"] for phase in phases) for row in rows])
    tops = {}
    for bar in bars.patches:
        tops[bar.get_x()] = max(tops.get(bar.get_x(), 0.0), bar.get_y() + bar.get_height())
    assert np.mean(list(tops.values())) == pytest.approx(mean_total)


@pytest.mark.parametrize(("count", "lines"), [(50, 1), (51, 2)])
def test_more_than_fifty_points_fade_behind_a_smoothed_line(tmp_path, figures, count, lines):
    draw_plots([{"step": i, "loss": 1.0 / (i + 1)} for i in range(count)], tmp_path, "run")
    drawn = axes_titled(figures[0], "Loss").lines
    assert len(drawn) == lines
    assert (drawn[0].get_alpha() or 1.0) == pytest.approx(1.0 if lines == 1 else 0.22)


def test_schedule_is_not_smoothed(tmp_path, figures):
    draw_plots(
        [{"step": i, "loss": 1.0, "learning_rate": min(i, 10) * 1e-5} for i in range(200)], tmp_path, "run"
    )
    (line,) = axes_titled(figures[0], "Learning rate").lines
    assert max(line.get_ydata()) == 10e-5
    assert line.get_ydata()[5] == 5e-5


def test_early_spike_does_not_flatten_the_rest(tmp_path, figures):
    rows = [{"step": i, "loss": 1.0, "grad_norm": 5000.0 if i == 0 else 1.0} for i in range(30)]
    draw_plots(rows, tmp_path, "run")
    assert axes_titled(figures[0], "Gradient norm").get_yscale() == "log"
    assert axes_titled(figures[0], "Loss").get_yscale() == "linear"


def test_missing_and_nonfinite_values_are_gaps_not_zeros():
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3},
        {"loss": 9.0},
        {"step": 4, "loss": True},
    ]
    assert points(rows, "loss") == ([1.0], [2.0])


def test_smoothing_keeps_a_straight_line_to_both_ends():
    line = 3.0 - 0.7 * np.arange(200)
    np.testing.assert_allclose(smooth(line), line, atol=1e-9)


def test_smoothing_takes_out_most_of_the_noise_and_little_of_the_curve():
    steps = np.arange(400)
    curve = 2.0 + 3.0 * np.exp(-steps / 120)
    noise = np.random.default_rng(0).normal(0, 0.3, 400)
    error = smooth(curve + noise) - curve
    assert np.sqrt(np.mean(error**2)) < 0.3 * np.sqrt(np.mean(noise**2))


def test_comparison_needs_two_runs_of_one_stage(tmp_path, synthetic):
    sft, ppo = synthetic["sft"](), synthetic["ppo"]()
    assert draw_comparison({"a": sft, "b": ppo}, tmp_path) == []
    assert draw_comparison({"a": ppo, "b": sft, "c": synthetic["ppo"](seed=8)}, tmp_path) == [
        tmp_path / "comparison_ppo.png"
    ]


def test_comparison_gives_each_run_one_colour_in_every_panel(tmp_path, synthetic, figures):
    draw_comparison({"a": synthetic["sft"](), "b": synthetic["sft"](seed=3)}, tmp_path)
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["a", "b"]
    for axes in visible_axes(figures[0]):
        assert {line.get_color() for line in axes.lines} == set(plots.RUN_COLORS[:2])


def test_ppo_loss_alone_does_not_make_an_sft_picture(synthetic):
    assert [theme.name for theme in themes_of(synthetic["ppo"]())] == ["ppo"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.25, "1.25"),
        (20000.0, "2e4"),
        (-0.5, "−0.5"),
        (0.00015, "1.5e−4"),
        (-2e-7, "−2e−7"),
        (128, "128"),
    ],
)
def test_tick_labels_are_short(value, text):
    assert plots._short(value) == text
    assert not math.isnan(value)
