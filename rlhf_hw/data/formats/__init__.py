"""The known formats, and which of them a data set is in."""

import re
from collections.abc import Sequence

from rlhf_hw.data.formats import (
    alpaca,
    chat,
    gpt4_comparison,
    hc3,
    hh_rlhf,
    local_jsonfile,
    miracl,
    mkqa,
    multi_turn_alpaca,
    open_assistant,
    orca,
    preference,
    rlhf_reward,
    shp,
    summarization,
    synthetic_instruct,
    text,
    vicuna,
    webgpt,
    zhihu,
)
from rlhf_hw.data.formats.columns import SUFFIXES, read_format
from rlhf_hw.data.formats.format import Format, MalformedRow, Row
from rlhf_hw.errors import UserError

__all__ = ["FORMATS", "Format", "MalformedRow", "Row", "detect", "format_named", "known_formats"]

# The first that matches wins, so the more particular column sets come before the more general ones.
FORMATS: tuple[Format, ...] = (
    synthetic_instruct.FORMAT,
    rlhf_reward.FORMAT,
    local_jsonfile.FORMAT,
    mkqa.CHINESE,
    mkqa.JAPANESE,
    orca.FORMAT,
    shp.FORMAT,
    webgpt.FORMAT,
    hc3.FORMAT,
    miracl.FORMAT,
    zhihu.FORMAT,
    open_assistant.FORMAT,
    gpt4_comparison.FORMAT,
    vicuna.FORMAT,
    preference.FORMAT,
    hh_rlhf.FORMAT,
    alpaca.PREFERENCE_FORMAT,
    multi_turn_alpaca.FORMAT,
    alpaca.FORMAT,
    chat.FORMAT,
    summarization.FORMAT,
    text.FORMAT,
)


def known_formats(prompt_dict_path: str | None = None) -> tuple[Format, ...]:
    """All formats; Alpaca's with the prompts of that file, if one is given."""
    if prompt_dict_path is None:
        return FORMATS
    own = {known.name: known for known in alpaca.alpaca_formats(alpaca.read_prompts(prompt_dict_path))}
    return tuple(own.get(known.name, known) for known in FORMATS)


def detect(
    columns: Sequence[str], first_row: Row, formats: Sequence[Format] = FORMATS, set_name: str = ""
) -> Format:
    """The format of a data set with these columns and this name or path.

    Raises:
        UserError: it is in no known format; names the known column sets.
    """
    named = [candidate for candidate in formats if _is_named(candidate, set_name)]
    for candidate in (*named, *(candidate for candidate in formats if not candidate.set_names)):
        if candidate.matches(columns, first_row):
            return candidate
    told_by_name = [candidate for candidate in formats if candidate.matches(columns, first_row)]
    if told_by_name:
        names = " or ".join(name for candidate in told_by_name for name in candidate.set_names)
        raise UserError(
            f"--data_format: the columns are those of {names}, and the set is not named so; say which with "
            f"--data_format {' or '.join(candidate.name for candidate in told_by_name)}"
        )
    known = "; ".join(f"{candidate.name}: {candidate.example_columns}" for candidate in formats)
    found = ", ".join(map(str, columns)) or "none"
    raise UserError(
        f"--data_format: the columns found ({found}) are those of no known format; rename columns to one of these "
        f"sets, name the format, or describe it in a YAML file (docs/data.md): {known}"
    )


def _is_named(candidate: Format, set_name: str) -> bool:
    """Whether one of the format's names is a whole part of the set's name or path, whatever the case."""
    path = f"/{set_name.strip('/')}/".casefold()
    return any(re.search(rf"/{re.escape(name.casefold())}(\.\w+)*/", path) for name in candidate.set_names)


def format_named(name: str, formats: Sequence[Format] = FORMATS) -> Format:
    """The format that a user asked for with --data_format: a known one's name, or a YAML file."""
    if name.endswith(SUFFIXES):
        return read_format(name)
    for candidate in formats:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in formats)
    raise UserError(f"--data_format: {name!r} is no known format; choose one of {names}, or name a YAML file")
