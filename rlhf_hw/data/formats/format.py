"""What a format is, and how a converter reads a row without ever guessing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_hw.data.example import ROLES, Example, Message

Row = Mapping[str, Any]


class MalformedRow(ValueError):
    """A row that cannot be converted; the message is the reason, the same words for the same fault."""


def as_they_are(rows: Iterator[Any]) -> Iterator[Any]:
    return rows


@dataclass(frozen=True)
class Format:
    """One family of data sets: how to know it by its columns, and how to make an `Example` of a row.

    `matches(columns, first_row)`: is this the format of a set with these columns?
    `convert(row)`: the example, or `MalformedRow`.
    `example_columns`: the column sets it knows, in words for the error a user reads.
    `chat_prompt(row)`: the prompt as messages, for `--task chat` (without it, a text prompt becomes one
    user message). Only called on rows that `convert` accepted.
    `set_names`: sets whose columns another format has too, with other text in them. Such a format is told by a part
    of the set's name or path (and its columns), never by columns alone.
    `gather(rows)`: rows that `convert` takes, where an example needs several of the set's rows.
    `content`: what decides the text beside the code, where a user's file does; part of the cache's name.
    """

    name: str
    matches: Callable[[Sequence[str], Row], bool]
    convert: Callable[[Row], Example]
    example_columns: str
    chat_prompt: Callable[[Row], tuple[Message, ...]] | None = None
    set_names: tuple[str, ...] = ()
    gather: Callable[[Iterator[Any]], Iterator[Any]] = as_they_are
    content: str = ""


def required_text(row: Row, column: str) -> str:
    """The text of a column that must hold something more than white space."""
    value = row.get(column)
    if value is None:
        raise MalformedRow(f"{column} is null or missing")
    if not isinstance(value, str):
        raise MalformedRow(f"{column} is {type(value).__name__}, not text")
    if not value.strip():
        raise MalformedRow(f"{column} is empty")
    return value


def optional_text(row: Row, column: str) -> str:
    """The text of a column in which null, a missing value and "" all mean that there is none."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedRow(f"{column} is {type(value).__name__}, not text")
    return value


def read_messages(
    value: Any,
    column: str,
    role_key: str = "role",
    content_key: str = "content",
    role_names: Mapping[str, str] | None = None,
) -> tuple[Message, ...]:
    """A list of {role, content} dictionaries as messages; an empty system message is left out.

    `role_names` translates a data set's own names for roles to ours; without it they must be ours.
    """
    if not isinstance(value, list) or not value:
        raise MalformedRow(f"{column} is not a list of messages" if value else f"{column} is null or empty")
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise MalformedRow(f"a message in {column} is {type(turn).__name__}, not an object")
        role, content = turn.get(role_key), turn.get(content_key)
        if role_names is not None:
            role = role_names.get(role, role) if isinstance(role, str) else role
        if role not in ROLES:
            raise MalformedRow(f"a message in {column} has the unknown {role_key} {role!r}")
        if not isinstance(content, str):
            raise MalformedRow(
                f"a message in {column} has {type(content).__name__} for its {content_key}, not text"
            )
        if content.strip():
            messages.append(Message(role, content))
        elif role != "system":
            raise MalformedRow(f"a message in {column} is empty")
    if not messages:
        raise MalformedRow(f"{column} is empty")
    return tuple(messages)


def answer_of(messages: tuple[Message, ...], column: str) -> str:
    """The last message's text, which must be the assistant's."""
    if messages[-1].role != "assistant":
        raise MalformedRow(f"{column} does not end with an assistant message")
    return messages[-1].content
