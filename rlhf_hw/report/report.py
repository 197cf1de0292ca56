"""The report of a run, and the comparison of several: Markdown with its pictures, and one HTML page with them inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_hw.errors import UserError
from rlhf_hw.report.diagnosis import findings
from rlhf_hw.report.document import (
    Answers,
    Block,
    Bullets,
    Code,
    Document,
    Heading,
    Mono,
    Paragraph,
    Picture,
    Table,
    Tiles,
    to_html,
    to_markdown,
)
from rlhf_hw.report.panels import is_number, themes_of
from rlhf_hw.report.plots import PLOTS, SMOOTH_ABOVE, draw_comparison, draw_plots
from rlhf_hw.report.results import duration, headlines, number, results
from rlhf_hw.report.run import Run, flatten, read_run
from rlhf_hw.run_files import record_own_files, write_atomically

REPORT, COMPARISON = "report", "comparison"
MOST_SAMPLES = 6


def write_report(directory: Path) -> Path:
    """Draw the plots and write report.md and report.html below a run directory; returns the HTML page's path."""
    run = read_run(directory)
    pictures = draw_plots(run.rows, directory / PLOTS, run.name)
    blocks: list[Block] = []
    found = results(run.rows)
    if found:
        blocks.append(Tiles(headlines(found)))
    blocks += _warnings(run)
    blocks += _results(run)
    if pictures:
        titles = {theme.name: theme.title for theme in themes_of(run.rows)}
        blocks.append(Heading("Curves"))
        blocks += [Picture(path, f"{titles[path.stem]}: curves of {run.name}") for path in pictures]
    blocks += _samples(run)
    blocks += _what_was_run(run)
    return _write(Document(run.name, _in_one_line(run), blocks), directory, REPORT, pictures)


def write_comparison(directories: Sequence[Path]) -> Path:
    """Overlay several runs: comparison.md and .html below the first of them; returns the HTML page's path."""
    if len({directory.resolve() for directory in directories}) < 2:
        raise UserError("--compare: one run alone cannot be compared; name two run directories or more")
    runs = [read_run(directory) for directory in directories]
    names = _distinct_names(runs)
    directory = directories[0]
    pictures = draw_comparison(
        {name: run.rows for name, run in zip(names, runs, strict=True)}, directory / PLOTS
    )
    blocks: list[Block] = [Heading("Results")]
    by_column = [{result.measure.column: result for result in results(run.rows)} for run in runs]
    measures = list(dict.fromkeys(result.measure for columns in by_column for result in columns.values()))
    lines = []
    for measure in measures:
        cells = [measure.label]
        for columns in by_column:
            result = columns.get(measure.column)
            cells.append(number(result.last if result else None, measure.percent))
        lines.append(cells)
    blocks += [Paragraph("The last value of each metric."), Table(["", *names], lines, numbers_from=1)]
    if pictures:
        blocks.append(Heading("Curves"))
        blocks += [Picture(path, f"{' and '.join(names)} over each other") for path in pictures]
    else:
        blocks.append(
            Paragraph("No two of these runs were of the same stage, so there are no curves to overlay.")
        )
    blocks += _differences(runs, names)
    return _write(Document("Comparison of runs", ", ".join(names), blocks), directory, COMPARISON, pictures)


# ---- the parts ------------------------------------------------------------------------------------------------------


def _in_one_line(run: Run) -> str:
    stage = " and ".join(theme.title for theme in themes_of(run.rows)) or "Nothing logged yet"
    state = str(run.status.get("state", "unknown"))
    if state == "running":
        state = f"still running, or killed, when last heard of ({run.status.get('updated', 'unknown')})"
    parts = [stage, state, f"step {run.status.get('step', 0)}"]
    parts.append(f"wall time {duration(run.status.get('wall_seconds', 0.0))}")
    backend = run.environment.get("backend") or {}
    device = backend.get("device_name") or backend.get("name")
    return " · ".join([*parts, str(device)] if device else parts)


def _warnings(run: Run) -> list[Block]:
    sentences = [*findings(run.rows), *run.warnings]
    reason = run.status.get("reason")
    if reason:
        sentences.insert(0, f"The run {run.status.get('state')}: {reason}")
    if not sentences:
        return [Heading("What to look at"), Paragraph("Nothing in the metrics looks wrong.")]
    return [Heading("What to look at"), Bullets(sentences, warning=True)]


def _results(run: Run) -> list[Block]:
    lines = []
    for result in results(run.rows):
        percent = result.measure.percent
        best_step = "–" if result.best_step is None else f"{result.best_step:.0f}"
        figures = [number(value, percent) for value in (result.first, result.last, result.best)]
        lines.append([result.measure.label, Mono(result.measure.column), *figures, best_step])
    if not lines:
        return []
    note = "Best is the highest or the lowest, whichever is meant to be."
    if len(run.rows) > SMOOTH_ABOVE:
        note += f" Training metrics logged more than {SMOOTH_ABOVE} times are read off their smoothed curve."
    return [
        Heading("Results"),
        Table(["", "metric", "first", "last", "best", "at step"], lines, numbers_from=2),
        Paragraph(note),
    ]


def _samples(run: Run) -> list[Block]:
    """The first and the last answers to the same prompts, beside each other; other texts of a row come along."""
    if not run.samples:
        return []
    ends = sorted({run.samples[0].get("step", 0), run.samples[-1].get("step", 0)})
    by_prompt: dict[str, dict[int, dict[str, Any]]] = {}  # prompt -> step -> the first row of that step
    for row in run.samples:
        if row.get("step", 0) in ends and isinstance(row.get("prompt"), str):
            by_prompt.setdefault(row["prompt"], {}).setdefault(row.get("step", 0), row)
    # Prompts seen at both ends come first: they show what training changed.
    prompts = sorted(by_prompt, key=lambda prompt: -len(by_prompt[prompt]))[:MOST_SAMPLES]
    title = "Samples: first and last" if len(ends) == 2 else f"Samples at step {ends[0]}"
    return [Heading(title), *(Answers(prompt, _answers(by_prompt[prompt])) for prompt in prompts)]


def _answers(rows: dict[int, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(label, text, note) of every text in the rows of one prompt; a reference that never changes is shown once."""
    answers: dict[tuple[str, str], tuple[str, str, str]] = {}
    for step, row in rows.items():
        figures = [f"{name} {number(row[name])}" for name in row if name != "step" and is_number(row[name])]
        for name, text in row.items():
            if name == "response":
                answers[f"response at step {step}", text] = (
                    f"response at step {step}",
                    text,
                    ", ".join(figures),
                )
            elif name != "prompt" and isinstance(text, str):
                answers.setdefault((name, text), (name, text, ""))
    return sorted(answers.values(), key=lambda answer: not answer[0].startswith("response at"))


def _what_was_run(run: Run) -> list[Block]:
    blocks: list[Block] = [Heading("What was run")]
    if run.command:
        blocks.append(Code(run.command))
    facts = {name: value for name, value in run.environment.items() if name not in ("packages", "backend")}
    facts |= {
        f"backend {name}": value for name, value in flatten(run.environment.get("backend") or {}).items()
    }
    packages = run.environment.get("packages") or {}
    if packages:
        facts["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    if facts:
        blocks.append(
            Table(["on", ""], [[name.replace("_", " "), _plainly(value)] for name, value in facts.items()])
        )
    if run.config_text:
        blocks.append(Code(run.config_text, title="The whole configuration"))
    if run.events:
        lines = [
            [str(event.get("time", "")), str(event.get("event", "")), _details(event)] for event in run.events
        ]
        blocks += [Heading("Events"), Table(["time (UTC)", "event", ""], lines)]
    return blocks


def _differences(runs: Sequence[Run], names: Sequence[str]) -> list[Block]:
    configurations = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for configuration in configurations for key in configuration))
    lines = []
    for key in keys:
        values = [_plainly(configuration.get(key)) for configuration in configurations]
        if len(set(values)) > 1:
            lines.append([Mono(key), *values])
    if not lines:
        return [Heading("Configuration"), Paragraph("The configurations are the same.")]
    return [Heading("Where the configurations differ"), Table(["setting", *names], lines)]


def _write(document: Document, directory: Path, stem: str, pictures: Sequence[Path]) -> Path:
    page = directory / f"{stem}.html"
    written = [page, directory / f"{stem}.md", *pictures]
    record_own_files(directory, [path.relative_to(directory).as_posix() for path in written])
    write_atomically(directory / f"{stem}.md", to_markdown(document, directory))
    write_atomically(page, to_html(document))
    return page


def _distinct_names(runs: Sequence[Run]) -> list[str]:
    """The directory's own name where that tells the runs apart, else with its parent's."""
    short = [run.path.resolve().name for run in runs]
    if len(set(short)) == len(short):
        return short
    long = [run.name for run in runs]
    return long if len(set(long)) == len(long) else [str(run.path) for run in runs]


def _details(event: dict[str, Any]) -> str:
    rest = {name: value for name, value in event.items() if name not in ("time", "event")}
    return ", ".join(f"{name.replace('_', ' ')}: {_plainly(value)}" for name, value in rest.items())


def _plainly(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(_plainly(item) for item in value)
    return str(value)
