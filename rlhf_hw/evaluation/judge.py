"""Judges of two answers to one prompt: a chat model behind an endpoint, asked in both orders, or a reward model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_hw.data.example import Example
from rlhf_hw.evaluation.endpoint import Endpoint, Stopped
from rlhf_hw.evaluation.scoring import AnswerScorer
from rlhf_hw.evaluation.win_rate import Verdict

#: How often a judge is asked again whose verdict could not be read.
UNCLEAR_RETRIES = 2

INSTRUCTIONS = (
    "You compare two answers to the same request. Judge how well each does what was asked: whether it is right, complete, "
    "clear and no longer than it needs to be. Neither the order of the answers nor their length is a merit. Say which "
    "answer is better. Your reply is one word and nothing else: FIRST, SECOND, or TIE where neither is better."
)
QUESTION = "# Request\n\n{prompt}\n\n# First answer\n\n{first}\n\n# Second answer\n\n{second}\n\n# Which is better? FIRST, SECOND or TIE"
_WORD = re.compile(r"\b(FIRST|SECOND|TIE)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt. `request`: the prompt as a person reads it; `example`: as a model does."""

    request: str
    example: Example
    reference: str
    answer: str


class Judge(Protocol):
    """Compares the answers of pairs."""

    def verdicts(self, pairs: Mapping[int, Pair]) -> Iterator[tuple[int, list[Verdict], dict[str, Any]]]:
        """(row, a verdict an order asked, further columns) of each pair, in the order in which they come in."""
        ...


def read_verdict(text: str) -> str | None:
    """FIRST, SECOND or TIE as a judge said it: the one such word of its reply, else of the reply's last line."""
    for part in (text, text.strip().splitlines()[-1] if text.strip() else ""):
        words = {word.upper() for word in _WORD.findall(part)}
        if len(words) == 1:
            return words.pop()
    return None


class EndpointJudge:
    """A chat model, asked twice: once with the reference first, once with the answer first, which takes the advantage
    out that many models give to a position."""

    def __init__(self, endpoint: Endpoint, concurrency: int) -> None:
        self.endpoint = endpoint
        self.concurrency = concurrency

    def verdicts(self, pairs: Mapping[int, Pair]) -> Iterator[tuple[int, list[Verdict], dict[str, Any]]]:
        """See `Judge.verdicts`. A row is given once both its verdicts are there.

        Raises:
            UserError: the endpoint refuses, or does not answer at any try.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {pool.submit(self._both_orders, pair): row for row, pair in pairs.items()}
            for future in as_completed(futures):
                with suppress(Stopped):  # the request that failed for good says why
                    yield futures[future], future.result(), {}
        finally:  # also where the user interrupts: nothing is begun any more
            self.endpoint.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _both_orders(self, pair: Pair) -> list[Verdict]:
        seen = {"FIRST": Verdict.REFERENCE, "SECOND": Verdict.ANSWER, "TIE": Verdict.TIE}
        swapped = {"FIRST": Verdict.ANSWER, "SECOND": Verdict.REFERENCE, "TIE": Verdict.TIE}
        return [
            self._ask(pair.request, pair.reference, pair.answer, seen),
            self._ask(pair.request, pair.answer, pair.reference, swapped),
        ]

    def _ask(self, prompt: str, first: str, second: str, meaning: Mapping[str, Verdict]) -> Verdict:
        messages = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": QUESTION.format(prompt=prompt, first=first, second=second)},
        ]
        for _ in range(UNCLEAR_RETRIES + 1):
            word = read_verdict(self.endpoint.complete(messages))
            if word is not None:
                return meaning[word]
        return Verdict.UNCLEAR


class RewardModelJudge:
    """A reward model: the answer with the higher score is better. It sees each answer alone, so there is one order."""

    def __init__(self, scorer: AnswerScorer, batch_size: int) -> None:
        self.scorer = scorer
        self.batch_size = batch_size

    def verdicts(self, pairs: Mapping[int, Pair]) -> Iterator[tuple[int, list[Verdict], dict[str, Any]]]:
        """See `Judge.verdicts`; the further columns are the scores. Rows beyond the model's context are unclear."""
        rows = list(pairs)
        step = max(1, self.batch_size // 2)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            examples = [pairs[row].example for row in part]
            reference = self.scorer.scores(examples, [pairs[row].reference for row in part])
            answer = self.scorer.scores(examples, [pairs[row].answer for row in part])
            for row, one, two in zip(part, reference, answer, strict=True):
                yield row, [_higher(one, two)], {"score_1": one, "score_2": two}


def _higher(reference: float | None, answer: float | None) -> Verdict:
    if reference is None or answer is None:
        return Verdict.UNCLEAR
    if reference == answer:
        return Verdict.TIE
    return Verdict.ANSWER if answer > reference else Verdict.REFERENCE
