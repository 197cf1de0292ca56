"""Plain text in a `text` column (and the lines of .txt files): all of it is target, the prompt is empty."""

from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, Row, required_text


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return "text" in columns


def _convert(row: Row) -> Example:
    return Example("", required_text(row, "text"), source=FORMAT.name)


FORMAT = Format("text", _matches, _convert, "text")
