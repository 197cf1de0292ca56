"""openai/webgpt_comparisons: a question, two answers with citations, and a score for each (Nakano et al. 2021).

The answer with the higher score is preferred. Scores that are equal say nothing about which is better: such a row has
an answer to learn but no rejected one. Citations ("[1]", "[2, 3]") point at web pages that are not in the prompt, so
they are taken out.
"""

import re

from rlhf_hw.data.formats.format import MalformedRow, Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, question_format, text_or_none

_CITATION = re.compile(r" ?\[\d+(?:[,;–-] ?\d+)*\]")


def _question(row: Row) -> str:
    question = row.get("question")
    if not isinstance(question, dict):
        raise MalformedRow(f"question is {type(question).__name__}, not an object with a full_text")
    return required_text(question, "full_text")


def _score(row: Row, column: str) -> float:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedRow(f"{column} is {value!r}, not a number")
    return value


def _answers(row: Row) -> Answers:
    answers = [text_or_none(row, "answer_0"), text_or_none(row, "answer_1")]
    first, second = ((answer and _CITATION.sub("", answer).strip()) or None for answer in answers)
    scores = _score(row, "score_0"), _score(row, "score_1")
    if scores[0] == scores[1]:
        return first or second, None
    return (first, second) if scores[0] > scores[1] else (second, first)


FORMAT = question_format(
    "webgpt", ("question", "answer_0", "answer_1", "score_0", "score_1"), _question, _answers
)
