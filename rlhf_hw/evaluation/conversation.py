"""Talking with a model: what it says next in a conversation, as it is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from rlhf_hw.data.example import Message
from rlhf_hw.data.template import PLAIN_SPEAKERS, prompt_text
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.rollout.engine import end_token_ids


@dataclass(frozen=True)
class Manner:
    """How answers are drawn. `temperature` 0 is greedy; `num_beams` above 1 searches, and says nothing until it is done.

    `raw`: the last message as it is, without template or memory.
    """

    max_new_tokens: int = 128
    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 0
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    raw: bool = False

    def arguments(self) -> dict[str, Any]:
        """For `generate`."""
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.no_repeat_ngram_size:
            found["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        if self.temperature == 0:
            return {**found, "do_sample": False}
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {**found, "do_sample": True, **sampling}


class _Told(StoppingCriteria):
    """Stops a generation once it has been told to."""

    def __init__(self) -> None:
        self.stop = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.stop, dtype=torch.bool, device=input_ids.device)


def fitting(asked: Asked, turns: Sequence[Message], manner: Manner) -> list[Message]:
    """The latest turns that leave room for an answer in the model's context: the oldest are forgotten, a question and its
    answer at a time.

    Raises:
        UserError: the last message alone is too long.
    """
    kept = list(turns[-1:]) if manner.raw else list(turns)
    while asked.context is not None:
        length = _inputs(asked, kept, manner)["input_ids"].shape[1]
        if length + manner.max_new_tokens <= asked.context:
            break
        if len(kept) < 3:
            raise UserError(
                f"--max_new_tokens: {manner.max_new_tokens} after {length} tokens exceed the model's context of {asked.context}; "
                "shorten the message, or lower it"
            )
        kept = kept[2:]
    return kept


def said(asked: Asked, turns: Sequence[Message], manner: Manner) -> Iterator[str]:
    """The model's next turn, piece by piece. `turns` end with the user's message and fit into the context.

    Without a chat template the turns are written as Human and Assistant, and an answer ends where the model goes on to
    write the next Human's turn.
    """
    end = None if manner.raw or asked.tokenizer.chat_template else f"{PLAIN_SPEAKERS['user']}:"
    return until(_written(asked, _inputs(asked, turns, manner), manner), end)


def until(pieces: Iterator[str], end: str | None) -> Iterator[str]:
    """`pieces` up to `end` and the white space before it; what might be its beginning is held back until it is known."""
    held = ""
    for piece in pieces:
        held += piece
        if end is not None and end in held:
            yield held[: held.index(end)].rstrip()
            return
        ready = len(held) if end is None else _safe_length(held, end)
        if ready:
            yield held[:ready]
            held = held[ready:]
    yield held


def _safe_length(text: str, end: str) -> int:
    """How much of `text` can be no part of `end`, nor white space before it."""
    for start in range(max(0, len(text) - len(end) + 1), len(text) + 1):
        if end.startswith(text[start:]):
            return len(text[:start].rstrip())
    return len(text)


def _inputs(asked: Asked, turns: Sequence[Message], manner: Manner) -> Any:
    prompt = turns[-1].content if manner.raw else prompt_text(tuple(turns), asked.tokenizer)
    templated = not manner.raw and asked.tokenizer.chat_template is not None
    inputs = asked.tokenizer(prompt, return_tensors="pt", add_special_tokens=not templated)
    inputs.pop("token_type_ids", None)
    return inputs


def _written(asked: Asked, inputs: Any, manner: Manner) -> Iterator[str]:
    """The answer as `generate` writes it, in a thread of its own; closing the iterator ends it."""
    told = _Told()
    keywords = {
        **inputs.to(asked.model.device),
        **manner.arguments(),
        "pad_token_id": asked.tokenizer.pad_token_id,
        # training ends an answer with the tokenizer's EOS, which a base model's generation config may not know
        "eos_token_id": sorted(end_token_ids(asked.tokenizer, asked.model)),
        "stopping_criteria": StoppingCriteriaList([told]),
    }
    if manner.num_beams > 1:  # which beam wins is known at the end
        with torch.no_grad():
            row = asked.model.generate(**keywords)[0, inputs["input_ids"].shape[1] :]
        yield asked.tokenizer.decode(row, skip_special_tokens=True)
        return
    streamer = TextIteratorStreamer(asked.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            asked.model.generate(**keywords, streamer=streamer)
        except BaseException as error:  # the reader raises it
            failures.append(error)
            streamer.end()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield from streamer
    finally:
        told.stop = True
        writer.join()
    if failures:
        raise failures[0]
