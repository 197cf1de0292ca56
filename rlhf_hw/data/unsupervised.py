"""Unsupervised text as blocks of tokens: what a language-modelling loss beside PPO (PTX) learns from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from rlhf_hw.data.cached import cached_rows
from rlhf_hw.data.fingerprint import fingerprint_of_code, fingerprint_of_tokenizer, fingerprint_of_values
from rlhf_hw.data.rows import RowSource
from rlhf_hw.data.sources import DataSource, open_train_rows
from rlhf_hw.data.tokenize import SFT_FEATURES
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_COLUMN = "text"
_TEXTS_AT_ONCE = 1000


def unsupervised_blocks(
    source: DataSource, tokenizer: PreTrainedTokenizerBase, block_size: int = 512
) -> Dataset:
    """Columns `input_ids`, `loss_mask`: rows of exactly `block_size` tokens, every one a target but the first.

    They are what `rlhf_hw.data.collate.SFTCollator` takes. The train split's `text` column is tokenized, each text
    with the special tokens that the tokenizer writes of itself (Llama's and OPT's begin a text with BOS; GPT-2's
    write none), joined in the order of the set and cut. What does not fill the last block is dropped, and so are
    empty texts. At most `source.max_train_samples` texts are read.

    Raises:
        UserError: there is no such set, a row has no text, or the set does not fill one block.
    """
    rows = open_train_rows(source)
    fingerprint = fingerprint_of_values(
        rows.fingerprint,
        fingerprint_of_tokenizer(tokenizer),
        fingerprint_of_code(),
        ("unsupervised", block_size, source.max_train_samples),
    )
    return cached_rows(
        _blocks,
        SFT_FEATURES,
        fingerprint,
        cache_dir=source.cache_dir,
        keep_in_memory=source.keep_in_memory,
        rows=rows,
        tokenizer=tokenizer,
        block_size=block_size,
        max_texts=source.max_train_samples,
    )


def _blocks(
    rows: RowSource, tokenizer: PreTrainedTokenizerBase, block_size: int, max_texts: int | None
) -> Iterator[dict[str, Any]]:
    texts = itertools.islice(_texts(rows), max_texts)
    loss_mask = [0] + [1] * (block_size - 1)
    waiting: list[int] = []
    found = False
    while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
        # verbose=False: that a text is longer than the model's context says nothing where it is cut anyway
        waiting += itertools.chain.from_iterable(tokenizer(batch, verbose=False)["input_ids"])
        for start in range(0, len(waiting) - block_size + 1, block_size):
            yield {"input_ids": waiting[start : start + block_size], "loss_mask": loss_mask}
            found = True
        waiting = waiting[len(waiting) - len(waiting) % block_size :]
    if not found:
        raise UserError(
            f"--unsupervised_dataset_name: the texts of {rows.label} have {len(waiting)} tokens, less than one block "
            f"of {block_size}; name a larger set"
        )


def _texts(rows: RowSource) -> Iterator[str]:
    """The texts that are not empty."""
    for number, row in enumerate(rows.read(), start=1):
        text = row.get(TEXT_COLUMN) if isinstance(row, dict) else None
        if not isinstance(text, str):
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
            raise UserError(
                f"--unsupervised_dataset_name: {rows.label}, row {number}: no text in a column named {TEXT_COLUMN!r} "
                f"(columns: {columns}); rename the column"
            )
        if text.strip():
            yield text
