"""Alpaca instructions (instruction, input, output) and AlpacaFarm preferences (output_1, output_2, preference).

The two prompts are the published Alpaca format, to the letter (Taori et al. 2023, Stanford Alpaca; AlpacaFarm,
arXiv:2305.14387, uses the same): models trained on it answer to exactly this text. An empty input selects the
prompt without one. A file may give other texts.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, optional_text, required_text
from rlhf_hw.errors import UserError

PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_PLACE = re.compile(r"\{(instruction|input)\}")
#: The file's names for the two texts, and what each must hold.
_FILE_KEYS = {"prompt_inputs": ("{instruction}", "{input}"), "prompt_noinputs": ("{instruction}",)}


@dataclass(frozen=True)
class AlpacaPrompts:
    """The texts around {instruction} and {input}."""

    with_input: str = PROMPT_WITH_INPUT
    without_input: str = PROMPT_WITHOUT_INPUT

    def prompt(self, row: Row) -> str:
        instruction, context = required_text(row, "instruction"), optional_text(row, "input")
        if context.strip():
            return _fill(self.with_input, {"instruction": instruction, "input": context})
        return _fill(self.without_input, {"instruction": instruction})


def _fill(text: str, values: dict[str, str]) -> str:
    """The text with each {name} replaced, in one pass: braces elsewhere, also inside a value, are text."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)


def alpaca_prompt(row: Row) -> str:
    """The published prompt of a row."""
    return AlpacaPrompts().prompt(row)


def read_prompts(path: str) -> AlpacaPrompts:
    """The prompts in a JSON file with the keys `prompt_inputs` and `prompt_noinputs`.

    Raises:
        UserError: there is no such file, or it does not hold these texts.
    """
    try:
        texts: Any = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--prompt_dict_path: cannot read {path}: {error.strerror}; check the path (without the flag Alpaca's own "
            "prompts are used)"
        ) from error
    except ValueError as error:
        raise UserError(f"--prompt_dict_path: {path} is not valid JSON: {error}; mend the file") from error
    for key, places in _FILE_KEYS.items():
        text = texts.get(key) if isinstance(texts, dict) else None
        if not isinstance(text, str) or not all(place in text for place in places):
            raise UserError(
                f"--prompt_dict_path: {path} needs the key {key!r} with a text that holds {' and '.join(places)}"
            )
    return AlpacaPrompts(texts["prompt_inputs"], texts["prompt_noinputs"])


def _chat_prompt(row: Row) -> tuple[Message, ...]:
    parts = (row["instruction"], optional_text(row, "input"))
    return (Message("user", "\n\n".join(part for part in parts if part.strip())),)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return "instruction" in columns and "output_1" not in columns


def _matches_preference(columns: Sequence[str], first_row: Row) -> bool:
    return {"instruction", "output_1", "output_2", "preference"} <= set(columns)


def _preferred(row: Row) -> tuple[str, str]:
    """(chosen, rejected)."""
    # A csv file gives "1" for 1. A float, a bool or a 0-based label is another convention: not guessed at.
    winner = {"1": 1, "2": 2}.get(str(row.get("preference")).strip())
    if winner is None:
        raise MalformedRow(f"preference is {row.get('preference')!r}, not 1 or 2")
    first, second = required_text(row, "output_1"), required_text(row, "output_2")
    return (first, second) if winner == 1 else (second, first)


def alpaca_formats(prompts: AlpacaPrompts) -> tuple[Format, Format]:
    """(instructions, preferences), with these prompts."""

    def convert(row: Row) -> Example:
        answer = required_text(row, "output") if "output" in row else None
        return Example(prompts.prompt(row), answer, source="alpaca")

    def convert_preference(row: Row) -> Example:
        return Example(prompts.prompt(row), *_preferred(row), source="alpaca_farm")

    content = f"{prompts}"
    instructions = Format(
        "alpaca", _matches, convert, "instruction [input] [output]", _chat_prompt, content=content
    )
    preferences = Format(
        name="alpaca_farm",
        matches=_matches_preference,
        convert=convert_preference,
        example_columns="instruction [input] output_1 output_2 preference (1 or 2)",
        chat_prompt=_chat_prompt,
        content=content,
    )
    return instructions, preferences


FORMAT, PREFERENCE_FORMAT = alpaca_formats(AlpacaPrompts())
