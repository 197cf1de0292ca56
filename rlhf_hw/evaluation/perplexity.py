"""Perplexity of a language model on answers it did not write: exp of the mean loss a token."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from datasets import Dataset

from backends.shapes import ShapePolicy, WithinContext
from rlhf_hw.algorithms.losses import selective_log_softmax
from rlhf_hw.data.collate import IGNORED_LABEL, SFTCollator
from rlhf_hw.data.lengths import row_lengths
from rlhf_hw.data.tokenize import for_sft
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.models.positions import every_position, logits_at, next_token_positions


@dataclass(frozen=True)
class Perplexity:
    """Of `tokens` target tokens in `rows` rows: their summed loss in nats, and what follows from it."""

    rows: int
    tokens: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def value(self) -> float:
        """exp(loss); no larger than a float can be."""
        return math.exp(min(self.loss, 700.0))

    def __add__(self, other: Perplexity) -> Perplexity:
        return Perplexity(self.rows + other.rows, self.tokens + other.tokens, self.nats + other.nats)

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {**asdict(self), "loss": self.loss, "perplexity": self.value}


def perplexity(
    asked: Asked, rows: Dataset, *, max_length: int, batch_size: int, train_on_inputs: bool
) -> Perplexity:
    """On canonical rows, tokenized as in supervised fine-tuning: targets are the answer and its EOS, or all tokens.

    Raises:
        UserError: no row is left.
    """
    longest = min(max_length, asked.context or max_length)
    tokenized, _ = for_sft(rows, asked.tokenizer, max_length=longest, train_on_inputs=train_on_inputs)
    lengths = row_lengths(tokenized, "input_ids")
    shapes: ShapePolicy = asked.backend.shape_policy(lengths)
    if asked.context:
        shapes = WithinContext(shapes, asked.context)
    collate = SFTCollator(asked.tokenizer.pad_token_id, shapes.pad_length)
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    tokens, nats = 0, 0.0
    for start in range(0, len(by_length), batch_size):
        part = by_length[start : start + batch_size]
        batch = collate([tokenized[row] for row in part])
        if not shapes.may_vary and len(part) < batch_size:  # a smaller batch would be one more shape
            batch = {name: _filled_up(name, tensor, batch_size) for name, tensor in batch.items()}
        losses = _losses(asked, batch, fixed=not shapes.may_vary)
        targets = batch["labels"][:, 1:] != IGNORED_LABEL
        tokens += int(targets.sum())
        nats += losses
    return Perplexity(len(lengths), tokens, nats)


def _filled_up(name: str, tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """`tensor` [b, T] with its last row repeated to `batch_size` rows, without targets."""
    more = tensor[-1:].repeat(batch_size - len(tensor), 1)
    return torch.cat([tensor, torch.full_like(more, IGNORED_LABEL) if name == "labels" else more])


@torch.no_grad()
def _losses(asked: Asked, batch: dict[str, torch.Tensor], *, fixed: bool) -> float:
    """Summed negative log-likelihood of a batch's targets, in nats. `fixed`: no shape depends on how many they are."""
    there = {name: tensor.to(asked.backend.device) for name, tensor in batch.items()}
    inputs = {name: there[name] for name in ("input_ids", "attention_mask")}
    labels = there["labels"]
    if fixed:
        where = every_position(labels.shape[0], labels.shape[1] - 1, labels.device)
        following = labels[:, 1:].reshape(-1)
        log_probs = selective_log_softmax(
            logits_at(asked.model, where, **inputs).logits, following.clamp(min=0)
        )
        return -float((log_probs * (following != IGNORED_LABEL)).double().sum())
    targets = labels != IGNORED_LABEL
    targets[:, 0] = False  # nothing comes before the first token to predict it from
    logits = logits_at(asked.model, next_token_positions(targets), **inputs).logits
    return -float(selective_log_softmax(logits, labels[targets]).double().sum())
