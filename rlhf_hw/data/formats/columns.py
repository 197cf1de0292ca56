"""A format of the user's own: a YAML file that says which columns are prompt, chosen and rejected.

A value without braces is the name of a column. One with braces is a text in which {column} stands for the column's
text; doubled braces are braces. A dot goes into an object: {question.full_text}.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, required_text
from rlhf_hw.data.formats.hh_rlhf import transcript_prompt
from rlhf_hw.errors import UserError

SUFFIXES = (".yaml", ".yml")
_KEYS = ("prompt", "chosen", "rejected")


def read_format(path: str) -> Format:
    """The format that a YAML file describes.

    Raises:
        UserError: there is no such file, or it does not describe a format.
    """
    texts = _read(path)
    parts = {key: _reader(text, key, path) for key, text in texts.items()}
    columns = sorted({column for _, found in parts.values() for column in found})
    name = Path(path).stem

    def convert(row: Row) -> Example:
        values = {key: read(row) for key, (read, _) in parts.items()}
        return Example(values["prompt"], values.get("chosen"), values.get("rejected"), source=name)

    def matches(found: Sequence[str], first_row: Row) -> bool:
        return {column.partition(".")[0] for column in columns} <= set(found)

    def chat_prompt(row: Row) -> tuple[Message, ...]:
        return transcript_prompt(parts["prompt"][0](row))

    return Format(name, matches, convert, " ".join(columns), chat_prompt, content=repr(texts))


def _read(path: str) -> dict[str, str]:
    try:
        texts: Any = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--data_format: cannot read {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--data_format: {path} is not YAML: {' '.join(str(error).split())}") from error
    if (
        not isinstance(texts, dict)
        or "prompt" not in texts
        or ("rejected" in texts and "chosen" not in texts)
    ):
        raise UserError(
            f"--data_format: {path} must say what prompt is, and may say chosen, or chosen and rejected"
        )
    for key, text in texts.items():
        if key not in _KEYS:
            raise UserError(f"--data_format: {path}: unknown key {key!r}; known are {', '.join(_KEYS)}")
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"--data_format: {path}: {key} is {text!r}, not a column or a text; put it in quotes"
            )
    return texts


def _reader(text: str, key: str, path: str) -> tuple[Callable[[Row], str], list[str]]:
    """(what makes this part of a row, the columns it reads)."""
    if "{" not in text and "}" not in text:
        return lambda row: _value(row, text), [text]
    try:
        pieces = [(literal, column) for literal, column, _, _ in string.Formatter().parse(text)]
    except ValueError as error:
        raise UserError(f"--data_format: {path}: {key}: {error}; a brace that is text is doubled") from error
    columns = [column for _, column in pieces if column is not None]
    if not columns or not all(columns):
        raise UserError(f"--data_format: {path}: {key}: {text!r} names no column; write {{column}}")

    def fill(row: Row) -> str:
        return "".join(
            literal + ("" if column is None else _value(row, column)) for literal, column in pieces
        )

    return fill, columns


def _value(row: Row, column: str) -> str:
    """The text of a column, or inside an object that a column holds."""
    *outer, last = column.split(".") if column not in row else [column]
    for name in outer:
        inner = row.get(name)
        if not isinstance(inner, dict):
            raise MalformedRow(f"{name} is {type(inner).__name__}, not an object with {column}")
        row = inner
    return required_text(row, last)
