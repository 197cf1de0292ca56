"""Cohere/miracl-zh-queries-22-12 and miracl-ja-queries-22-12: a query, passages that answer it and some that do not.

The first passage of each kind is the chosen and the rejected answer.
"""

from rlhf_hw.data.formats.format import Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, first_text, question_format


def _question(row: Row) -> str:
    return required_text(row, "query")


def _answers(row: Row) -> Answers:
    return first_text(row, "positive_passages", "text"), first_text(row, "negative_passages", "text")


FORMAT = question_format("miracl", ("query", "positive_passages", "negative_passages"), _question, _answers)
