"""A reward model's scores of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends import Backend
from rlhf_hw.data.collate import pad_rows
from rlhf_hw.data.example import Example, to_row
from rlhf_hw.data.tokenize import answered
from rlhf_hw.models.reward_model import RewardModel


class AnswerScorer:
    """Scores answers as they were scored in reward modelling: prompt, answer, end of turn and EOS.

    Args:
        model: the reward model, in evaluation mode, on the backend's device.
        tokenizer: its tokenizer.
        batch_size: rows a forward pass.
        max_length: longest prompt with answer, in tokens; None: the model's context.
    """

    def __init__(
        self,
        model: RewardModel,
        tokenizer: Any,
        backend: Backend,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.backend = backend
        self.batch_size = batch_size
        context = getattr(model.config, "max_position_embeddings", None)
        limits = [limit for limit in (max_length, context) if limit]
        self.longest = min(limits) if limits else None

    def scores(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
        """The score of each answer to its example's prompt; None where both are longer than the model takes."""
        rows = [{**to_row(example), "canonical_prompt": to_row(example)["prompt"]} for example in examples]
        return self.sequence_scores(answered(rows, answers, [True] * len(rows), self.tokenizer))

    @torch.no_grad()
    def sequence_scores(self, sequences: Sequence[Sequence[int]]) -> list[float | None]:
        """The scores of sequences of token ids; those of like length go together."""
        scores: list[float | None] = [None] * len(sequences)
        fitting = [i for i, ids in enumerate(sequences) if self.longest is None or len(ids) <= self.longest]
        fitting.sort(key=lambda i: len(sequences[i]))
        policy = self.backend.shape_policy([len(sequences[i]) for i in fitting])
        for start in range(0, len(fitting), self.batch_size):
            part = fitting[start : start + self.batch_size]
            filled = part if policy.may_vary else part + part[-1:] * (self.batch_size - len(part))
            rows = [sequences[i] for i in filled]
            ids, mask = pad_rows(rows, self.tokenizer.pad_token_id, self._pad_length(policy.pad_length))
            values = self.model(ids.to(self.backend.device), mask.to(self.backend.device)).tolist()
            for i, value in zip(part, values, strict=False):
                scores[i] = value
        return scores

    def _pad_length(self, pad_length: Any) -> Any:
        """The shape policy's, within the model's context."""
        context = getattr(self.model.config, "max_position_embeddings", None)
        return (lambda longest: max(longest, min(pad_length(longest), context))) if context else pad_length
