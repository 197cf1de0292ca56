"""Open-Assistant (oasst1, oasst2): trees of messages, as one row a message or one row a tree (Köpf et al. 2023).

Every message of a person ("prompter") becomes one example: the prompt is the thread down to it, the chosen answer the
reply that people ranked first, the rejected one the reply ranked last. A single or unranked reply is learnt but not
compared. Messages that were deleted or failed review are left out with all that hangs on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, read_messages

_ROLES = {"prompter": "user", "assistant": "assistant"}


def _is_tree(row: Row) -> bool:
    return isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"]


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return {"message_id", "parent_id", "text", "role"} <= set(columns) or _is_tree(first_row)


def _messages(rows: Iterator[Any]) -> Iterator[Any]:
    """Messages, a parent before its replies as in the published files; trees are taken apart."""
    for row in rows:
        if not isinstance(row, Mapping) or not _is_tree(row):
            yield row
            continue
        waiting = [{**row["prompt"], "parent_id": None}]
        while waiting:
            message = waiting.pop(0)
            yield message
            waiting += [
                {**reply, "parent_id": message["message_id"]} for reply in message.get("replies") or ()
            ]


def _gather(rows: Iterator[Any]) -> Iterator[Any]:
    """One row for each of a person's messages: `thread` down to it, `replies` to it with their `rank`."""
    messages: dict[str, Row] = {}
    replies: dict[str, list[Row]] = {}
    for row in _messages(rows):
        if not isinstance(row, Mapping) or not isinstance(row.get("message_id"), str):
            yield {"fault": "the row is no message with a message_id"}
        elif not row.get("deleted") and row.get("review_result") is not False:
            messages[row["message_id"]] = row
            if row.get("parent_id") is not None:
                replies.setdefault(row["parent_id"], []).append(row)
    for identity, message in messages.items():
        if message.get("role") != "prompter":
            continue
        thread = _thread(message, messages)
        if thread is not None:
            yield {"thread": thread, "replies": replies.get(identity, [])}


def _thread(message: Row, messages: Mapping[str, Row]) -> list[Row] | None:
    """The messages from the first down to this one; None where one of them is left out."""
    thread = [message]
    while (parent := thread[-1].get("parent_id")) is not None:
        if parent not in messages or len(thread) > len(messages):
            return None
        thread.append(messages[parent])
    return thread[::-1]


def _convert(row: Row) -> Example:
    if "fault" in row:
        raise MalformedRow(row["fault"])
    thread = read_messages(row["thread"], "the thread", "role", "text", _ROLES)
    answers = [reply for reply in row["replies"] if str(reply.get("text") or "").strip()]
    ranked = sorted(
        (reply for reply in answers if reply.get("rank") is not None), key=lambda one: one["rank"]
    )
    if len(ranked) > 1:
        return Example(thread, ranked[0]["text"], ranked[-1]["text"], source=FORMAT.name)
    best = [*ranked, *answers][:1]
    return Example(thread, best[0]["text"] if best else None, source=FORMAT.name)


FORMAT = Format(
    "open_assistant",
    _matches,
    _convert,
    "message_id parent_id text role [rank] | message_tree_id prompt (a tree with replies)",
    gather=_gather,
)
