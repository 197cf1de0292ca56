"""Sets of questions with answers, written as DeepSpeed-Chat writes them: " Human: {question} Assistant: {answer}"."""

from collections.abc import Callable, Sequence

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.format import Format, MalformedRow, Row

#: (the answer to learn or to prefer, the other one); None where the row has none
Answers = tuple[str | None, str | None]


def human_prompt(question: str) -> str:
    return f" Human: {question} Assistant:"


def question_format(
    name: str,
    columns: Sequence[str],
    question: Callable[[Row], str],
    answers: Callable[[Row], Answers],
    set_names: tuple[str, ...] = (),
) -> Format:
    """The format of a set with these `columns`, from the two functions that read a row."""

    def convert(row: Row) -> Example:
        prompt = human_prompt(question(row))
        chosen, rejected = (answer if answer is None else f" {answer}" for answer in answers(row))
        return Example(prompt, chosen, rejected, source=name)

    def matches(found: Sequence[str], first_row: Row) -> bool:
        return set(columns) <= set(found)

    def chat_prompt(row: Row) -> tuple[Message, ...]:
        return (Message("user", question(row)),)

    named = f" (a set named {' or '.join(set_names)})" if set_names else ""
    return Format(name, matches, convert, " ".join(columns) + named, chat_prompt, set_names)


def first_text(row: Row, column: str, key: str | None = None) -> str | None:
    """The first text of a list, under `key` where its items are objects; None where the list is empty or null."""
    items = row.get(column)
    if items is None:
        return None
    if not isinstance(items, list):
        raise MalformedRow(f"{column} is {type(items).__name__}, not a list")
    if not items:
        return None
    item = items[0]
    if key is not None:
        if not isinstance(item, dict):
            raise MalformedRow(f"an item of {column} is {type(item).__name__}, not an object")
        item = item.get(key)
    if item is not None and not isinstance(item, str):
        raise MalformedRow(f"an item of {column} is {type(item).__name__}, not text")
    return item if item and item.strip() else None


def text_or_none(row: Row, column: str) -> str | None:
    """The text of a column where a set leaves some out: null and white space are no answer, and no fault."""
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise MalformedRow(f"{column} is {type(value).__name__}, not text")
    return value if value and value.strip() else None
