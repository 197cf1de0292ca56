"""MultiTurnAlpaca (l294265421/alpaca-rlhf): `instruction` is the dialogue so far, `output` the next answer.

The columns are Alpaca's; that the first instruction is a dialogue ("Human: … Assistant: ", or user and assistant, as
its authors' earlier file has it) tells the two apart.
"""

import re
from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, optional_text, required_text
from rlhf_hw.data.formats.hh_rlhf import transcript_prompt

_DIALOGUE = re.compile(r"\s*(Human|user):.*(Assistant|assistant):\s*", re.DOTALL)
_SPEAKER = re.compile(r"(?:(?<=\s)|^)(user|assistant):")
_NAMES = {"user": "Human", "assistant": "Assistant"}


def _prompt(row: Row) -> str:
    # the space behind "Assistant:" belongs to the answer, as everywhere: " Hello" is a token, " " and "Hello" two
    dialogue = required_text(row, "instruction").rstrip()
    if dialogue.startswith("user:"):
        dialogue = _SPEAKER.sub(lambda speaker: f"{_NAMES[speaker[1]]}:", dialogue)
    return dialogue


def _convert(row: Row) -> Example:
    if optional_text(row, "input").strip():
        raise MalformedRow("a dialogue has no input; an alpaca row has (--data_format alpaca)")
    return Example(_prompt(row), f" {required_text(row, 'output')}", source=FORMAT.name)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    if not {"instruction", "output"} <= set(columns):
        return False
    instruction = first_row.get("instruction")
    is_dialogue = isinstance(instruction, str) and _DIALOGUE.fullmatch(instruction)
    return bool(is_dialogue) and not optional_text(first_row, "input").strip()


FORMAT = Format(
    "multi_turn_alpaca",
    _matches,
    _convert,
    "instruction ('Human: … Assistant:') output",
    chat_prompt=lambda row: transcript_prompt(_prompt(row)),
)
