"""yitingxie/rlhf-reward-datasets: prompt, chosen, rejected, where each answer begins with "Assistant:".

The mark is moved to the end of the prompt, so that every stage sees one prompt: PPO's answers begin where the learnt
and the judged ones do. The joined text stays what it was.
"""

from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, Row, required_text
from rlhf_hw.data.formats.hh_rlhf import transcript_prompt

_MARK = "Assistant:"


def _answer(row: Row, column: str) -> str:
    text = required_text(row, column).lstrip()
    answer = text.removeprefix(_MARK)
    return answer if answer[:1].isspace() else f" {answer}"


def _convert(row: Row) -> Example:
    prompt = required_text(row, "prompt") + _MARK
    return Example(prompt, _answer(row, "chosen"), _answer(row, "rejected"), source=FORMAT.name)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return {"prompt", "chosen", "rejected"} <= set(columns)


FORMAT = Format(
    "rlhf_reward",
    _matches,
    _convert,
    "prompt chosen rejected (a set named rlhf-reward-datasets)",
    chat_prompt=lambda row: transcript_prompt(row["prompt"] + _MARK),
    set_names=("rlhf-reward-datasets",),
)
