"""wangrui6/Zhihu-KOL: INSTRUCTION, RESPONSE; questions of a Chinese forum with one answer each."""

from rlhf_hw.data.formats.format import Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, question_format, text_or_none


def _question(row: Row) -> str:
    return required_text(row, "INSTRUCTION")


def _answers(row: Row) -> Answers:
    return text_or_none(row, "RESPONSE"), None


FORMAT = question_format("zhihu", ("INSTRUCTION", "RESPONSE"), _question, _answers)
