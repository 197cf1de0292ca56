"""stanfordnlp/SHP: a Reddit post (`history`) with two comments; `labels` is 1 where A is the preferred one, else 0."""

from rlhf_hw.data.formats.format import MalformedRow, Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, question_format


def _question(row: Row) -> str:
    return required_text(row, "history")


def _answers(row: Row) -> Answers:
    a_is_better = {"1": True, "0": False}.get(str(row.get("labels")))  # a csv file gives "1" for 1
    if a_is_better is None:
        raise MalformedRow(f"labels is {row.get('labels')!r}, not 0 or 1")
    a, b = required_text(row, "human_ref_A"), required_text(row, "human_ref_B")
    return (a, b) if a_is_better else (b, a)


FORMAT = question_format("shp", ("history", "human_ref_A", "human_ref_B", "labels"), _question, _answers)
