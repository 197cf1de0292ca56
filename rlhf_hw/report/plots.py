"""Drawing the panels of a run, or of several runs over each other, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_hw.report.panels import Panel, Row, Series, Theme, points, themes_of

# Matplotlib takes a second to load, and one process of a run draws, at its end: it is imported there.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS = "plots"

# Few points are drawn as they are; from here on the raw line fades and a smoothed one leads the eye.
SMOOTH_ABOVE = 50
MOST_BARS = 40
# Axes turn logarithmic when the largest value is this many times the median: else one spike hides the rest.
SPIKE = 40.0

RUN_COLORS = ("#2f6fb0", "#d6702a", "#3d9a6b", "#8a63b5", "#b8434e", "#6b7280", "#a08a1f", "#2a9aa8")
LINE_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": "#4b5563",
    "axes.edgecolor": "#9ca3af",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.dpi": 120,
}


def draw_plots(rows: Sequence[Row], directory: Path, name: str) -> list[Path]:
    """One PNG a theme, `directory/{sft,reward,ppo}.png`, for the themes whose metrics were logged."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for theme in themes_of(rows):
        path = directory / f"{theme.name}.png"
        _draw(theme, {name: rows}, path)
        written.append(path)
    return written


def draw_comparison(runs: Mapping[str, Sequence[Row]], directory: Path) -> list[Path]:
    """The same pictures with a colour a run, `directory/comparison_{theme}.png`, where two runs or more have the theme."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    by_theme: dict[str, dict[str, Sequence[Row]]] = {}
    for name, rows in runs.items():
        for theme in themes_of(rows):
            by_theme.setdefault(theme.name, {})[name] = rows
    for theme_name, members in by_theme.items():
        if len(members) > 1:
            everything = [row for rows in members.values() for row in rows]
            theme = next(theme for theme in themes_of(everything) if theme.name == theme_name)
            path = directory / f"comparison_{theme_name}.png"
            _draw(theme, members, path)
            written.append(path)
    return written


def smooth(values: Sequence[float]) -> np.ndarray:
    """Local linear regression with a tricube kernel, a tenth of the points wide to each side; [n] -> [n].

    A straight line stays the same line up to both ends: a moving average would either lag or bend there.
    (W. S. Cleveland, "Robust locally weighted regression and smoothing scatterplots", JASA 1979, without robustness.)
    """
    array = np.asarray(values, dtype=float)
    half = max(3, len(array) // 10)
    offset = np.arange(-half, half + 1, dtype=float)  # of a neighbour from the point being fitted
    kernel = (1 - np.abs(offset / (half + 1)) ** 3) ** 3

    def moment(signal: np.ndarray, power: int) -> np.ndarray:
        """Sum over neighbours of kernel · offset^power · signal; [n]."""
        full = np.convolve(signal, (kernel * offset**power)[::-1])
        return full[half : half + len(signal)]

    ones = np.ones_like(array)
    s0, s1, s2 = (moment(ones, power) for power in (0, 1, 2))
    t0, t1 = (moment(array, power) for power in (0, 1))
    return (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2)


# ---------------------------------------------------------------------------------------------------------------------


def _draw(theme: Theme, runs: Mapping[str, Sequence[Row]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    count = len(theme.panels)
    columns = min(count, 2 if count <= 4 else 3)
    lines = math.ceil(count / columns)
    with matplotlib.rc_context(STYLE):
        height = 2.9 * lines + 0.7
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, rect=(0, 0, 1, 1 - 0.45 / height))
        figure = Figure(figsize=(5.0 * columns, height), layout=layout)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, panel in zip(grid.flat, theme.panels, strict=False):
            if len(runs) > 1:
                _draw_comparison(axes, panel, runs)
            elif panel.stacked:
                _draw_stacked(axes, panel, next(iter(runs.values())))
            else:
                _draw_panel(axes, panel, next(iter(runs.values())))
        for axes in list(grid.flat)[count:]:
            axes.set_visible(False)
        title = figure.text(0.012, 1 - 0.12 / height, theme.title, size=15, weight="bold", va="top")
        title.set_in_layout(False)
        if len(runs) > 1:
            handles = [
                Line2D([], [], color=RUN_COLORS[i % len(RUN_COLORS)], label=name)
                for i, name in enumerate(runs)
            ]
            legend = figure.legend(
                handles=handles, loc="upper right", ncols=4, bbox_to_anchor=(0.995, 1 - 0.06 / height)
            )
            legend.set_in_layout(False)
        else:
            name = figure.text(
                0.988, 1 - 0.16 / height, next(iter(runs)), size=10, color="#6b7280", va="top", ha="right"
            )
            name.set_in_layout(False)
        figure.savefig(path)


def _draw_panel(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    right = None
    shown: list[float] = []
    if panel.band:
        low, high = points(rows, panel.band[0]), points(rows, panel.band[1])
        if low[0] and low[0] == high[0]:
            color = panel.series[0].color
            axes.fill_between(
                low[0], low[1], high[1], color=color, alpha=0.13, linewidth=0, label="shortest to longest"
            )
    for series in panel.series:
        steps, values = points(rows, series.column)
        if not steps:
            continue
        target = axes
        if series.right_axis:
            right = right or _right_axis(axes, panel, series)
            target = right
        else:
            shown += values
        _draw_line(target, steps, values, series, color=series.color)
    _finish(axes, panel, shown)
    handles, labels = axes.get_legend_handles_labels()
    if right is not None:
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    if len(handles) > 1:
        axes.legend(handles, labels, loc="best")


def _draw_line(
    axes: Axes, steps: list[float], values: list[float], series: Series, *, color: str, style: Any = "-"
) -> None:
    if series.held_out:
        marker = "o" if len(steps) <= 30 else ""
        axes.plot(
            steps, values, style, color=color, marker=marker, markersize=4, label=series.label, zorder=3
        )
    elif series.noisy and len(steps) > SMOOTH_ABOVE:
        axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.9)
        axes.plot(steps, smooth(values), style, color=color, label=series.label)
    else:
        marker = "o" if len(steps) <= 3 else ""
        axes.plot(steps, values, style, color=color, marker=marker, markersize=4, label=series.label)


def _draw_stacked(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    columns = [series.column for series in panel.series]
    timed = [row for row in rows if any(row.get(column) is not None for column in columns)]
    groups = np.array_split(np.arange(len(timed)), min(len(timed), MOST_BARS))
    steps = [float(np.mean([timed[i]["step"] for i in group])) for group in groups]
    width = 0.82 * (min(np.diff(steps)) if len(steps) > 1 else 1.0)
    bottom = np.zeros(len(groups))
    for series in panel.series:
        heights = np.array([np.mean([timed[i].get(series.column) or 0.0 for i in group]) for group in groups])
        if heights.any():
            axes.bar(steps, heights, width, bottom=bottom, color=series.color, label=series.label)
            bottom += heights
    _finish(axes, panel, [])
    axes.set_ylim(0, max(bottom.max() * 1.28, 1e-9))  # room for the legend
    axes.legend(loc="upper center", ncols=4, columnspacing=1.0, handlelength=1.0)


def _draw_comparison(axes: Axes, panel: Panel, runs: Mapping[str, Sequence[Row]]) -> None:
    from matplotlib.lines import Line2D

    if panel.stacked:
        _draw_stacked_comparison(axes, panel, runs)
        return
    shown: list[float] = []
    panel_series = [series for series in panel.series if not series.right_axis]
    drawn_styles = {}
    for number, rows in enumerate(runs.values()):
        for series, style in zip(panel_series, LINE_STYLES, strict=False):
            steps, values = points(rows, series.column)
            if steps:
                _draw_line(
                    axes, steps, values, series, color=RUN_COLORS[number % len(RUN_COLORS)], style=style
                )
                shown += values
                drawn_styles[series.label] = style
    _finish(axes, panel, shown)
    if len(drawn_styles) > 1:
        axes.legend(
            handles=[
                Line2D([], [], color="#4b5563", linestyle=style, label=label)
                for label, style in drawn_styles.items()
            ]
        )


def _draw_stacked_comparison(axes: Axes, panel: Panel, runs: Mapping[str, Sequence[Row]]) -> None:
    left = np.zeros(len(runs))
    for series in panel.series:
        means = []
        for rows in runs.values():
            _, values = points(rows, series.column)
            means.append(float(np.mean(values)) if values else 0.0)
        if any(means):
            axes.barh(range(len(runs)), means, 0.5, left=left, color=series.color, label=series.label)
            left += np.array(means)
    axes.set_title(panel.title)
    axes.set_xlabel(f"{panel.ylabel}, mean")
    axes.set_yticks([])
    for number, name in enumerate(runs):
        color = RUN_COLORS[number % len(RUN_COLORS)]
        axes.text(0, number - 0.3, name, color=color, size=8.5, weight="bold", va="bottom")
    axes.set_ylim(len(runs) - 0.6, -1.2)  # the first run on top, under the legend
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.legend(loc="upper center", ncols=4, columnspacing=1.0, handlelength=1.0)


def _right_axis(axes: Axes, panel: Panel, series: Series) -> Axes:
    right = axes.twinx()
    right.set_ylabel(panel.right_label, color=series.color)
    right.tick_params(axis="y", colors=series.color)
    right.grid(visible=False)
    return right


def _finish(axes: Axes, panel: Panel, shown: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(panel.title)
    axes.set_ylabel(panel.ylabel)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if panel.reference is not None:
        axes.axhline(panel.reference, color="#6b7280", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if panel.floor is not None and shown and min(shown) < panel.floor < max(shown):
        axes.set_ylim(bottom=panel.floor)
    elif shown and min(shown) > 0 and max(shown) > SPIKE * float(np.median(shown)):
        axes.set_yscale("log")


def _short(value: float) -> str:
    """A tick label: 0.00015 is 1.5e-4, 20000 stays 20000, and zero is 0."""
    value = 0.0 if abs(value) < 1e-12 else value
    mantissa, _, exponent = f"{value:.4g}".replace("-", "−", 1 if value < 0 else 0).partition("e")
    if not exponent and 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = f"{float(mantissa):g}".replace("-", "−")
    return f"{mantissa}e{int(exponent)}".replace("e-", "e−") if exponent else mantissa
