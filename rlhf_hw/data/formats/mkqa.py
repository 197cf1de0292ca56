"""apple/mkqa: one question in 26 languages with short answers; DeepSpeed-Chat's mkqa-Chinese and mkqa-Japanese.

Columns `queries` {language: text} and `answers` {language: [{type, entity, text, aliases}]} are the same whatever
language is wanted, so the name says it. Questions without a short answer have null for its text.
"""

from collections.abc import Mapping

from rlhf_hw.data.formats.format import Format, MalformedRow, Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, first_text, question_format


def _by_language(row: Row, column: str) -> Mapping[str, object]:
    value = row.get(column)
    if not isinstance(value, dict):
        raise MalformedRow(f"{column} is {type(value).__name__}, not an object with languages")
    return value


def _of(name: str, language: str, set_name: str) -> Format:
    def question(row: Row) -> str:
        return required_text(_by_language(row, "queries"), language)

    def answers(row: Row) -> Answers:
        return first_text(_by_language(row, "answers"), language, "text"), None

    return question_format(name, ("queries", "answers"), question, answers, set_names=(set_name,))


CHINESE = _of("mkqa_chinese", "zh_cn", "mkqa-Chinese")
JAPANESE = _of("mkqa_japanese", "ja", "mkqa-Japanese")
