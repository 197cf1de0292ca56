"""Articles with their summaries, in the columns of CNN/DailyMail: article, highlights."""

from collections.abc import Sequence

from rlhf_hw.data.example import Example
from rlhf_hw.data.formats.format import Format, Row, required_text

BEFORE_ARTICLE = "Summarize the following article.\n\n"
AFTER_ARTICLE = "\n\nSummary:\n"


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return {"article", "highlights"} <= set(columns)


def _convert(row: Row) -> Example:
    prompt = BEFORE_ARTICLE + required_text(row, "article").strip() + AFTER_ARTICLE
    return Example(prompt, required_text(row, "highlights"), source=FORMAT.name)


FORMAT = Format("summarization", _matches, _convert, "article highlights")
