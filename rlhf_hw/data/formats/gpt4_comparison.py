"""GPT-4-LLM's comparison_data.json: `user_input` with answers that GPT-4 has scored (Peng et al. 2023, arXiv:2304.03277).

Two shapes are in circulation: `completion_a` (the better by the set's README), `completion_b`; and, later,
`responses_and_scores`, a list of {response, source, score}, of which the best and the worst become the pair. The prompt is
Alpaca's, as for the answers.
"""

import math
from collections.abc import Mapping, Sequence

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats.alpaca import PROMPT_WITHOUT_INPUT
from rlhf_hw.data.formats.format import Format, MalformedRow, Row, required_text
from rlhf_hw.data.formats.human_assistant import Answers, text_or_none


def _scored(item: object) -> tuple[float, str]:
    if not isinstance(item, Mapping):
        raise MalformedRow(f"an item of responses_and_scores is {type(item).__name__}, not an object")
    score = item.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
        raise MalformedRow(f"a score is {score!r}, not a number")
    return score, text_or_none(item, "response") or ""


def _answers(row: Row) -> Answers:
    if "responses_and_scores" not in row:
        return required_text(row, "completion_a"), required_text(row, "completion_b")
    items = row["responses_and_scores"]
    if not isinstance(items, list):
        raise MalformedRow(f"responses_and_scores is {type(items).__name__}, not a list")
    scored = [(score, response) for score, response in map(_scored, items) if response]
    if not scored:
        return None, None
    best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    return best[1], worst[1] if worst[0] < best[0] else None


def _convert(row: Row) -> Example:
    chosen, rejected = _answers(row)
    prompt = PROMPT_WITHOUT_INPUT.format(instruction=required_text(row, "user_input"))
    return Example(prompt, chosen, rejected, source=FORMAT.name)


def _matches(columns: Sequence[str], first_row: Row) -> bool:
    return "user_input" in columns and (
        "responses_and_scores" in columns or {"completion_a", "completion_b"} <= set(columns)
    )


FORMAT = Format(
    "gpt4_comparison",
    _matches,
    _convert,
    "user_input responses_and_scores | user_input completion_a completion_b",
    chat_prompt=lambda row: (Message("user", row["user_input"]),),
)
