"""Conversations: `messages` of {role, content}, or ShareGPT's `conversations` of {from, value}.

The assistant's last message is the answer and every earlier one is a target of SFT too (`learn_all_turns`).
A conversation that ends with the user is a prompt without an answer.
"""

from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, read_messages

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return "messages" in columns or "conversations" in columns


def _convert(row: Row) -> Example:
    if "messages" in row:
        messages = read_messages(row["messages"], "messages")
    else:
        turns = row.get("conversations")
        messages = read_messages(turns, "conversations", "from", "value", SHAREGPT_ROLES)
    if messages[-1].role == "system":
        raise MalformedRow("the conversation ends with a system message")
    if messages[-1].role == "user":
        return Example(messages, None, source=FORMAT.name)
    prompt = messages[:-1]
    if not prompt:
        raise MalformedRow("the conversation has no prompt")
    earlier_answers = any(message.role == "assistant" for message in prompt)
    return Example(prompt, messages[-1].content, source=FORMAT.name, learn_all_turns=earlier_answers)


FORMAT = Format("chat", _matches, _convert, "messages (role, content) | conversations (from, value)")
