"""`--task summarization`: articles and summaries are held to a length of their own before they are put together.

Cut after the joining, a long article would push its summary out of the row, and the words that ask for a summary
out of the prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset

from rlhf_hw.data.fingerprint import fingerprint_of_code, fingerprint_of_tokenizer, fingerprint_of_values
from rlhf_hw.data.formats.summarization import AFTER_ARTICLE, BEFORE_ARTICLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Shortened(NamedTuple):
    """Canonical rows, and how many articles and summaries in them were cut."""

    dataset: Dataset
    articles_cut: int
    summaries_cut: int


def shorten(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    num_proc: int | None = None,
) -> Shortened:
    """Canonical rows whose articles have at most `max_source_length` tokens and whose summaries `max_target_length`.

    What our own prompt says around an article is kept whole and not counted. In another format's rows the whole
    prompt is the article. Conversations are left as they are.
    """

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        prompts = [
            prompt if is_chat else _cut_article(prompt, tokenizer, max_source_length)
            for prompt, is_chat in zip(batch["prompt"], batch["prompt_is_chat"], strict=True)
        ]
        return {
            "prompt": prompts,
            "chosen": [first_tokens(text, tokenizer, max_target_length) for text in batch["chosen"]],
        }

    fingerprint = fingerprint_of_values(
        dataset._fingerprint,
        fingerprint_of_tokenizer(tokenizer),
        fingerprint_of_code(),
        (max_source_length, max_target_length),
    )
    shortened = dataset.map(
        cut,
        batched=True,
        features=dataset.features,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        new_fingerprint=fingerprint,
        desc="Shortening articles",
    )
    articles, summaries = (
        sum(before != after for before, after in zip(dataset[name], shortened[name], strict=True))
        for name in ("prompt", "chosen")
    )
    return Shortened(shortened, articles, summaries)


def first_tokens(text: str, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """The beginning of `text` that is its first `count` tokens; all of it if it has no more."""
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= count else tokenizer.decode(ids[:count])
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= count else text[: offsets[count - 1][1]]


def _cut_article(prompt: str, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    if not (prompt.startswith(BEFORE_ARTICLE) and prompt.endswith(AFTER_ARTICLE)):
        return first_tokens(prompt, tokenizer, count)
    article = prompt.removeprefix(BEFORE_ARTICLE).removesuffix(AFTER_ARTICLE)
    return BEFORE_ARTICLE + first_tokens(article, tokenizer, count).rstrip() + AFTER_ARTICLE
