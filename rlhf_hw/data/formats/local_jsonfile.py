"""DeepSpeed-Chat's local/jsonfile: data/train.json and data/eval.json with prompt, chosen, rejected.

The text is " " + prompt + " " + answer.
"""

from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, Row, required_text
from rlhf_hw.data.formats.hh_rlhf import transcript_prompt


def _convert(row: Row) -> Example:
    rejected = f" {required_text(row, 'rejected')}" if row.get("rejected") is not None else None
    chosen = f" {required_text(row, 'chosen')}"
    return Example(f" {required_text(row, 'prompt')}", chosen, rejected, source=FORMAT.name)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return {"prompt", "chosen"} <= set(columns)


FORMAT = Format(
    "local_jsonfile",
    _matches,
    _convert,
    "prompt chosen [rejected] (the set named local/jsonfile)",
    chat_prompt=lambda row: transcript_prompt(row["prompt"]),
    set_names=("local/jsonfile",),
)
