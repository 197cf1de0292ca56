"""Anthropic's HH-RLHF: two whole transcripts that differ in the assistant's last answer.

Each transcript is one string, every turn led by a blank line and its speaker: "\\n\\nHuman: …\\n\\nAssistant: …"
(Bai et al. 2022, arXiv:2204.05862). Some published rows differ earlier than in the last answer: no preference
between two answers to *one* prompt can be read from those, so they are malformed here.
"""

import re
from collections.abc import Sequence

from rlhf_hw.data.example import Example, Message, Role
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, answer_of, required_text

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ANY_SPEAKER = re.compile(r"(?:^|\s)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str, column: str) -> tuple[Message, ...]:
    """The turns of a transcript, white space around each taken off."""
    before, *turns = _SPEAKER.split(text)
    if before.strip() or not turns:
        raise MalformedRow(f"{column} does not begin with 'Human:' or 'Assistant:'")
    messages = tuple(
        Message(_ROLES[speaker], said.strip()) for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    )
    if not all(message.content for message in messages):
        raise MalformedRow(f"a turn in {column} is empty")
    return messages


def transcript_prompt(text: str) -> tuple[Message, ...]:
    """The turns of a prompt that is a transcript up to "Assistant:"; any other text is one message of the user.

    Here white space of any kind may stand between the turns: "Human: … Assistant:" is how many sets write it.
    """
    before, *turns = _ANY_SPEAKER.split(text)
    speakers, said = turns[::2], [turn.strip() for turn in turns[1::2]]
    is_transcript = not before.strip() and len(turns) > 2 and speakers[0] == "Human"
    if is_transcript and speakers[-1] == "Assistant" and not said[-1] and all(said[:-1]):
        return tuple(
            Message(_ROLES[speaker], text) for speaker, text in zip(speakers[:-1], said[:-1], strict=True)
        )
    return (Message("user", text),)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return (
        {"chosen", "rejected"} <= set(columns)
        and "prompt" not in columns
        and not isinstance(first_row.get("chosen"), list)
    )


def _convert(row: Row) -> Example:
    chosen = parse_transcript(required_text(row, "chosen"), "chosen")
    rejected = parse_transcript(required_text(row, "rejected"), "rejected")
    chosen_answer, rejected_answer = answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise MalformedRow("chosen and rejected have different prompts")
    if len(chosen) == 1:
        raise MalformedRow("the transcript has no prompt")
    return Example(chosen[:-1], chosen_answer, rejected_answer, source=FORMAT.name)


FORMAT = Format(
    name="hh_rlhf",
    matches=_matches,
    convert=_convert,
    example_columns="chosen rejected (transcripts '\\n\\nHuman: …\\n\\nAssistant: …')",
)
