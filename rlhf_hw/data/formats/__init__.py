"""The known formats, and which of them a set of columns is."""

from collections.abc import Sequence

from rlhf_hw.data.formats import alpaca, chat, hh_rlhf, orca, preference, summarization, text
from rlhf_hw.data.formats.format import Format, MalformedRow, Row
from rlhf_hw.errors import UserError

__all__ = ["FORMATS", "Format", "MalformedRow", "Row", "detect", "format_named"]

# The first that matches wins, so the more particular column sets come before the more general ones.
FORMATS: tuple[Format, ...] = (
    orca.FORMAT,
    preference.FORMAT,
    hh_rlhf.FORMAT,
    alpaca.PREFERENCE_FORMAT,
    alpaca.FORMAT,
    chat.FORMAT,
    summarization.FORMAT,
    text.FORMAT,
)


def detect(columns: Sequence[str], first_row: Row) -> Format:
    """The format of a data set with these columns; `UserError` with the known column sets if there is none."""
    for candidate in FORMATS:
        if candidate.matches(columns, first_row):
            return candidate
    known = "; ".join(f"{candidate.name}: {candidate.example_columns}" for candidate in FORMATS)
    found = ", ".join(map(str, columns)) or "none"
    raise UserError(
        f"--data_format: the columns found ({found}) are those of no known format; "
        f"rename columns to one of these sets, or name the format: {known}"
    )


def format_named(name: str) -> Format:
    """The format a user asked for with --data_format."""
    for candidate in FORMATS:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in FORMATS)
    raise UserError(f"--data_format: {name!r} is no known format; choose one of {names}")
