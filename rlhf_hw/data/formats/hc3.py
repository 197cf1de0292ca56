"""Hello-SimpleAI/HC3-Chinese (and HC3): a question, people's answers and ChatGPT's. The first of the people's is learnt.

Which answers are better nobody judged, so there is no rejected one.
"""

from rlhf_hw.data.formats.format import Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, first_text, question_format


def _question(row: Row) -> str:
    return required_text(row, "question")


def _answers(row: Row) -> Answers:
    return first_text(row, "human_answers"), None


FORMAT = question_format("hc3", ("question", "human_answers"), _question, _answers)
