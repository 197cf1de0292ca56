"""Prompt with one answer or two, as text or as chat messages: the column names TRL uses.

prompt, chosen, rejected · prompt, completion · prompt alone · chosen, rejected as whole conversations (the
prompt is then what both share before the last message). A conversation in `chosen` may repeat the prompt, as
in HuggingFaceH4/ultrafeedback_binarized; it is taken off again.
"""

from collections.abc import Sequence

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, answer_of, read_messages, required_text
from rlhf_hw.data.formats.hh_rlhf import transcript_prompt

Prompt = str | tuple[Message, ...]


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    conversations = {"chosen", "rejected"} <= set(columns) and isinstance(first_row.get("chosen"), list)
    return "prompt" in columns or conversations


def _prompt(row: Row) -> Prompt | None:
    """The prompt column; None where the set has none."""
    if "prompt" not in row:
        return None
    if isinstance(row["prompt"], list):
        return read_messages(row["prompt"], "prompt")
    return required_text(row, "prompt")


def _answer(row: Row, column: str, prompt: Prompt | None) -> tuple[Prompt, str]:
    """(the prompt this answer belongs to, the answer)."""
    if not isinstance(row.get(column), list):
        if prompt is None:
            raise MalformedRow(f"{column} is no conversation and there is no prompt")
        return prompt, required_text(row, column)
    messages = read_messages(row[column], column)
    answer, before = answer_of(messages, column), messages[:-1]
    if not before and prompt is not None:
        return (Message("user", prompt),) if isinstance(prompt, str) else prompt, answer
    if not before:
        raise MalformedRow(f"{column} has no prompt")
    if isinstance(prompt, tuple) and before != prompt:
        raise MalformedRow(f"prompt and {column} disagree about the earlier messages")
    if isinstance(prompt, str) and prompt.strip() not in (message.content.strip() for message in before):
        raise MalformedRow(f"prompt and {column} disagree about the earlier messages")
    return before, answer


def _convert(row: Row) -> Example:
    prompt = _prompt(row)
    answer_column = "chosen" if "chosen" in row else "completion"
    if answer_column not in row:
        if prompt is None:
            raise MalformedRow("prompt is null or missing")
        return Example(prompt, None, source=FORMAT.name)
    chosen_prompt, chosen = _answer(row, answer_column, prompt)
    if "rejected" not in row:
        return Example(chosen_prompt, chosen, source=FORMAT.name)
    rejected_prompt, rejected = _answer(row, "rejected", prompt)
    if chosen_prompt != rejected_prompt:
        raise MalformedRow("chosen and rejected have different prompts")
    return Example(chosen_prompt, chosen, rejected, source=FORMAT.name)


FORMAT = Format(
    name="preference",
    matches=_matches,
    convert=_convert,
    example_columns="prompt [chosen rejected | completion] (text or message lists) | chosen rejected (message lists)",
    chat_prompt=lambda row: transcript_prompt(row["prompt"]),
)
