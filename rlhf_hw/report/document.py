"""A small document: blocks that become Markdown beside its pictures, or one HTML page with them inside."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class Mono(str):
    """Text set in the font of code: a flag, a metric's name."""


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list; `warning` sets it apart as something to look at."""

    items: Sequence[str]
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """The columns from `numbers_from` on hold numbers and are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers_from: int = 99


@dataclass(frozen=True)
class Tiles:
    """Headline figures: (label, value, note)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Code:
    """Text kept as it is; with a `title` it is folded away under it."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


@dataclass(frozen=True)
class Answers:
    """One prompt and the answers to it, side by side: (label, text, note)."""

    prompt: str
    answers: Sequence[tuple[str, str, str]]


Block = Heading | Paragraph | Bullets | Table | Tiles | Code | Picture | Answers


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    blocks: Sequence[Block]


# ---- Markdown -------------------------------------------------------------------------------------------------------


def to_markdown(document: Document, directory: Path) -> str:
    """`directory` is where the text will lie: pictures are linked relative to it."""
    parts = [f"# {_escaped(document.title)}", _escaped(document.subtitle)]
    parts += [_block_to_markdown(block, directory) for block in document.blocks]
    return "\n\n".join(parts) + "\n"


def _block_to_markdown(block: Block, directory: Path) -> str:
    match block:
        case Heading(text):
            return f"## {_escaped(text)}"
        case Paragraph(text):
            return _inline(text)
        case Bullets(items):
            return "\n".join(f"- {_inline(item)}" for item in items)
        case Table(header, rows, numbers_from):
            rule = ["---:" if index >= numbers_from else "---" for index in range(len(header))]
            lines = [[_cell(cell) for cell in header], rule, *([_cell(cell) for cell in row] for row in rows)]
            return "\n".join("| " + " | ".join(line) + " |" for line in lines)
        case Tiles(items):
            return "\n".join(
                f"- **{_inline(label)}: {_inline(value)}** ({_inline(note)})" for label, value, note in items
            )
        case Code(text, title):
            fenced = _fenced(text)
            if not title:
                return fenced
            return f"<details><summary>{html.escape(title)}</summary>\n\n{fenced}\n\n</details>"
        case Picture(path, caption):
            return f"![{_escaped(caption)}]({path.relative_to(directory).as_posix()})"
        case Answers(prompt, answers):
            parts = ["**Prompt**", _fenced(prompt)]
            for label, text, note in answers:
                parts += [f"**{_inline(label)}**" + (f" ({_inline(note)})" if note else ""), _fenced(text)]
            return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Within a word an underscore is no markup."""
    return re.sub(r"([\\`*<>\[\]|#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _inline(text: str) -> str:
    return f"`{text}`" if isinstance(text, Mono) else _escaped(text)


def _cell(text: str) -> str:
    return _inline(text).replace("\\|", "|").replace("|", "\\|")


def _fenced(text: str) -> str:
    """A fence longer than any run of backticks within, so that the text cannot end it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


# ---- HTML -----------------------------------------------------------------------------------------------------------

_STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --ground: #f6f7f9; --accent: #2f6fb0; --alert: #b45309; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 2rem 4rem; background: #fff; min-height: 100vh; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.01em; }
h2 { margin: 2.6rem 0 0.9rem; font-size: 1.2rem; padding-bottom: 0.35rem; border-bottom: 1px solid var(--line); }
.subtitle { color: var(--soft); margin: 0.3rem 0 1.8rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.86em; }
code { background: #f3f4f6; padding: 0.1em 0.35em; border-radius: 4px; }
pre { background: #f8fafc; border: 1px solid var(--line); border-radius: 8px; padding: 0.9rem 1rem; margin: 0.8rem 0;
      white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 0.82rem; }
th, td { padding: 0.42rem 0.7rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 0.9rem; }
.tile { border: 1px solid var(--line); border-radius: 10px; padding: 0.8rem 1rem; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 0.85rem; }
.warning { list-style: none; padding: 0; }
.warning li { border-left: 4px solid var(--alert); background: #fffbeb; border-radius: 0 8px 8px 0;
              padding: 0.6rem 0.9rem; margin: 0.5rem 0; }
figure { margin: 1rem 0 1.6rem; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 10px; }
details { margin: 0.8rem 0; } summary { cursor: pointer; color: var(--accent); }
.sample { border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0; overflow: hidden; }
.prompt { background: #f8fafc; padding: 0.7rem 1rem; border-bottom: 1px solid var(--line); }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); }
.answer { padding: 0.7rem 1rem; } .answer + .answer { border-left: 1px solid var(--line); }
.label { color: var(--soft); font-size: 0.8rem; font-weight: 600; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { background: #fff; } main { padding: 0; } .sample, figure { break-inside: avoid; } }
"""


def to_html(document: Document) -> str:
    """One file with everything in it: it can be mailed, and opens without a network."""
    body = "\n".join(_block_to_html(block) for block in document.blocks)
    title = html.escape(document.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f'<p class="subtitle">{html.escape(document.subtitle)}</p>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _block_to_html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_marked(text)}</p>"
        case Bullets(items, warning):
            kind = ' class="warning"' if warning else ""
            return f"<ul{kind}>" + "".join(f"<li>{_marked(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows, numbers_from):
            lines = [_table_row(header, "th", numbers_from)]
            lines += [_table_row(row, "td", numbers_from) for row in rows]
            return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"
        case Tiles(items):
            tiles = [
                f'<div class="tile"><span>{_marked(label)}</span><b>{_marked(value)}</b><span>{_marked(note)}</span></div>'
                for label, value, note in items
            ]
            return '<div class="tiles">' + "".join(tiles) + "</div>"
        case Code(text, title):
            code = f"<pre>{html.escape(text)}</pre>"
            return f"<details><summary>{html.escape(title)}</summary>{code}</details>" if title else code
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>'
        case Answers(prompt, answers):
            shown = "".join(
                f'<div class="answer"><div class="label">{html.escape(label)}'
                f'{" · " + html.escape(note) if note else ""}</div><div class="text">{html.escape(text)}</div></div>'
                for label, text, note in answers
            )
            return (
                f'<div class="sample"><div class="prompt"><div class="label">Prompt</div>'
                f'<div class="text">{html.escape(prompt)}</div></div><div class="answers">{shown}</div></div>'
            )


def _table_row(cells: Sequence[str], tag: str, numbers_from: int) -> str:
    columns = [
        f'<{tag} class="number">{_marked(cell)}</{tag}>'
        if index >= numbers_from
        else f"<{tag}>{_marked(cell)}</{tag}>"
        for index, cell in enumerate(cells)
    ]
    return "<tr>" + "".join(columns) + "</tr>"


def _marked(text: str) -> str:
    return f"<code>{html.escape(text)}</code>" if isinstance(text, Mono) else html.escape(text)
