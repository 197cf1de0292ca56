"""Dahoas/synthetic-instruct-gptj-pairwise: prompt, chosen, rejected, where the prompt is the bare question."""

from rlhf_hw.data.formats.format import Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, question_format


def _question(row: Row) -> str:
    return required_text(row, "prompt")


def _answers(row: Row) -> Answers:
    return required_text(row, "chosen"), required_text(row, "rejected")


FORMAT = question_format(
    "synthetic_instruct",
    ("prompt", "chosen", "rejected"),
    _question,
    _answers,
    set_names=("synthetic-instruct-gptj-pairwise",),
)
