"""Alpaca instructions (instruction, input, output) and AlpacaFarm preferences (output_1, output_2, preference).

The two prompts are the published Alpaca format, to the letter (Taori et al. 2023, Stanford Alpaca; AlpacaFarm,
arXiv:2305.14387, uses the same): models trained on it answer to exactly this text. An empty input selects the
prompt without one.
"""

from collections.abc import Sequence

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, optional_text, required_text

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


def alpaca_prompt(row: Row) -> str:
    instruction, context = required_text(row, "instruction"), optional_text(row, "input")
    if context.strip():
        return PROMPT_WITH_INPUT.format(instruction=instruction, input=context)
    return PROMPT_WITHOUT_INPUT.format(instruction=instruction)


def _chat_prompt(row: Row) -> tuple[Message, ...]:
    parts = (row["instruction"], optional_text(row, "input"))
    return (Message("user", "\n\n".join(part for part in parts if part.strip())),)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return "instruction" in columns and "output_1" not in columns


def _convert(row: Row) -> Example:
    answer = required_text(row, "output") if "output" in row else None
    return Example(alpaca_prompt(row), answer, source=FORMAT.name)


def _matches_preference(columns: Sequence[str], first_row: Row) -> bool:
    return {"instruction", "output_1", "output_2", "preference"} <= set(columns)


def _convert_preference(row: Row) -> Example:
    # A csv file gives "1" for 1. A float, a bool or a 0-based label is another convention: not guessed at.
    winner = {"1": 1, "2": 2}.get(str(row.get("preference")).strip())
    if winner is None:
        raise MalformedRow(f"preference is {row.get('preference')!r}, not 1 or 2")
    answers = required_text(row, "output_1"), required_text(row, "output_2")
    chosen, rejected = answers if winner == 1 else answers[::-1]
    return Example(alpaca_prompt(row), chosen, rejected, source=PREFERENCE_FORMAT.name)


FORMAT = Format("alpaca", _matches, _convert, "instruction [input] [output]", _chat_prompt)
PREFERENCE_FORMAT = Format(
    name="alpaca_farm",
    matches=_matches_preference,
    convert=_convert_preference,
    example_columns="instruction [input] output_1 output_2 preference (1 or 2)",
    chat_prompt=_chat_prompt,
)
