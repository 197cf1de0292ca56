"""pvduy/sharegpt_alpaca_oa_vicuna_format: a Vicuna conversation in `prompt` ("USER: … ASSISTANT:"), its answer in `label`.

The speakers become Human and Assistant; "</s>" at the answer's end is left out, because every answer ends with the
tokenizer's own EOS.
"""

import re
from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, Row, required_text
from rlhf_hw.data.formats.hh_rlhf import transcript_prompt
from rlhf_hw.data.formats.human_assistant import text_or_none

_SPEAKER = re.compile(r"\b(USER|ASSISTANT):")
_NAMES = {"USER": "Human", "ASSISTANT": "Assistant"}


def _prompt(row: Row) -> str:
    prompt = required_text(row, "prompt").rstrip()
    return _SPEAKER.sub(lambda speaker: f"{_NAMES[speaker[1]]}:", prompt)


def _convert(row: Row) -> Example:
    label = text_or_none(row, "label")
    answer = label.removesuffix("</s>").strip() if label else ""
    return Example(_prompt(row), f" {answer}" if answer else None, source=FORMAT.name)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    # beside an answer of another column `label` is no answer: TRL's says whether the completion is a good one
    return {"prompt", "label"} <= set(columns) and not {"completion", "chosen"} & set(columns)


FORMAT = Format(
    "vicuna", _matches, _convert, "prompt label", chat_prompt=lambda row: transcript_prompt(_prompt(row))
)
