"""Instructions to be answered: rows of a JSON file, and the prompts they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_hw.data.encode import special_prefix
from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.alpaca import alpaca_prompt
from rlhf_hw.data.formats.format import MalformedRow
from rlhf_hw.data.rows import from_files
from rlhf_hw.data.template import is_templated, prompt_text
from rlhf_hw.errors import UserError

Row = Mapping[str, Any]


def read_instructions(path: str, flag: str) -> list[dict[str, Any]]:
    """The rows of a file, each an object with `instruction` (and `input`) or `prompt`.

    Raises:
        UserError: there is no such file, it holds no rows, or a row is no such object; names the row, from 1.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{flag}: there is no file {path}; check the path")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(from_files([file]).read(), start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{flag}: {path}, row {number}: {type(row).__name__}, expected an object with columns"
            )
        try:
            example_of(row)
        except MalformedRow as fault:
            raise UserError(f"{flag}: {path}, row {number}: {fault}") from fault
        rows.append(row)
    if not rows:
        raise UserError(f"{flag}: {path} holds no rows")
    return rows


def example_of(row: Row, *, chat: bool = False) -> Example:
    """The prompt of a row: its `prompt` as it is, else Alpaca's text of `instruction` and `input`.

    `chat`: as a chat message instead, for a model with a chat template.

    Raises:
        MalformedRow: the row has neither, or one that is no text.
    """
    if row.get("prompt") is not None:
        prompt = row["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise MalformedRow("prompt is no text, or empty")
        return Example((Message("user", prompt),) if chat else prompt, None, source=source_of(row))
    if "instruction" not in row:
        found = ", ".join(map(str, row)) or "none"
        raise MalformedRow(f"the columns are {found}; it needs instruction (and input), or prompt")
    text = alpaca_prompt(row)
    if not chat:
        return Example(text, None, source=source_of(row))
    parts = (row["instruction"], row.get("input") or "")
    return Example(
        (Message("user", "\n\n".join(p for p in parts if p.strip())),), None, source=source_of(row)
    )


def source_of(row: Row) -> str:
    """Where a row says it comes from: AlpacaFarm's evaluation set names five data sets in `dataset`."""
    for column in ("source", "dataset"):
        if isinstance(row.get(column), str):
            return row[column]
    return ""


def prompt_ids(example: Example, tokenizer: Any) -> list[int]:
    """Ids of a prompt, as in training: the tokenizer's own beginning where no template writes one."""
    ids = tokenizer(prompt_text(example.prompt, tokenizer), add_special_tokens=False)["input_ids"]
    own = [] if is_templated(example.prompt, tokenizer) else special_prefix(tokenizer)
    return [*own, *ids]


def end_of(ids: list[int], longest: int, beginning: list[int]) -> list[int]:
    """At most `longest` ids: the last ones, behind the tokenizer's own `beginning` where the prompt had it, as in training."""
    if len(ids) <= longest:
        return ids
    kept = beginning if ids[: len(beginning)] == beginning else []
    return [*kept, *ids[len(ids) - longest + len(kept) :]]
