"""Intel/orca_dpo_pairs: a system line, a question, and a better and a worse answer.

Two column sets are in circulation: system, question, chosen, rejected; and the older one that names the
models, chatgpt (the better) and llama2-13b-chat. The prompt is system + question as raw text, nothing between,
as the recipe that introduced the set trains on it.
"""

from collections.abc import Sequence

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.format import Format, Row, optional_text, required_text

ANSWER_COLUMNS = (("chosen", "rejected"), ("chatgpt", "llama2-13b-chat"))


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return "question" in columns and any(set(pair) <= set(columns) for pair in ANSWER_COLUMNS)


def _convert(row: Row) -> Example:
    better, worse = next(pair for pair in ANSWER_COLUMNS if pair[0] in row or pair == ANSWER_COLUMNS[-1])
    prompt = optional_text(row, "system") + required_text(row, "question")
    return Example(prompt, required_text(row, better), required_text(row, worse), source=FORMAT.name)


def _chat_prompt(row: Row) -> tuple[Message, ...]:
    user = Message("user", row["question"])
    system = optional_text(row, "system")
    return (Message("system", system), user) if system.strip() else (user,)


FORMAT = Format(
    name="orca",
    matches=_matches,
    convert=_convert,
    example_columns="[system] question chosen rejected | [system] question chatgpt llama2-13b-chat",
    chat_prompt=_chat_prompt,
)
