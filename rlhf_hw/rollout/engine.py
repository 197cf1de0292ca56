"""The interface of every rollout engine, and the record that all of them return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch

from backends.shapes import ShapePolicy, WithinContext
from rlhf_hw.errors import UserError
from rlhf_hw.models.wrapping import virtual_tokens


class StopReason(IntEnum):
    """Why an answer ended."""

    EOS = 0  #: the policy wrote an end token (it is part of the answer)
    LENGTH = 1  #: the answer reached the longest length allowed


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    temperature 0 is greedy. `top_k` 0 and `top_p` 1 draw from the whole vocabulary: PPO's ratio assumes it.
    Before `min_new_tokens` an end token is not drawn. `end_tokens` are tokens that end an answer beside EOS.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_ngram: int = 0
    end_tokens: frozenset[int] = frozenset()

    def greedy(self) -> Sampling:
        """The same lengths without chance."""
        return Sampling(self.max_new_tokens, self.min_new_tokens, temperature=0.0, end_tokens=self.end_tokens)


@dataclass
class Rollout:
    """B prompts with their answers, right padded to T = longest prompt + answer.

    input_ids, attention_mask, response_mask: [B, T]; `response_mask` is true on answer tokens, the end token
    included. `stop_reasons`: [B] of `StopReason` values.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    stop_reasons: torch.Tensor

    @property
    def response_lengths(self) -> torch.Tensor:
        """Answer lengths [B] in tokens."""
        return self.response_mask.sum(dim=1)

    @property
    def last_tokens(self) -> torch.Tensor:
        """Id [B] of the last token of each answer."""
        last = self.attention_mask.sum(dim=1, keepdim=True) - 1
        return self.input_ids.gather(1, last).squeeze(1)

    @property
    def ended(self) -> torch.Tensor:
        """Which answers [B] (bool) ended by an end token."""
        return self.stop_reasons == StopReason.EOS

    def response_mask_padded(self, width: int | None = None) -> torch.Tensor:
        """[B, R] (bool): true on the first `response_lengths` columns; R = `width`, or else the longest answer."""
        lengths = self.response_lengths
        columns = int(lengths.max()) if width is None else width
        return torch.arange(columns, device=lengths.device) < lengths[:, None]

    def response_ids(self) -> list[list[int]]:
        """Token ids of each answer."""
        return rows_where(self.input_ids, self.response_mask)

    def texts(self, tokenizer: Any) -> list[str]:
        """The answers as text, special tokens left out."""
        return tokenizer.batch_decode(self.response_ids(), skip_special_tokens=True)


def rows_where(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The ids [B, T] of each row at which `mask` [B, T] is true: chosen on the host, since their number varies."""
    return [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.bool().cpu(), strict=True)]


class RolloutEngine(Protocol):
    """Draws answers from a policy."""

    def generate(
        self, policy: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        """Answer each prompt (token ids). Answer i depends on prompt i, the weights and `seeds[i]` alone: not on
        the batch around it, so a rollout can be replayed, and two processes draw what one would have drawn."""
        ...


def check_prompts(policy: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Refuse what no engine can answer.

    Raises:
        UserError: a prompt is empty, or prompt and answer together are longer than the model's context.
    """
    if min(len(prompt) for prompt in prompts) == 0:
        raise UserError(
            "a prompt is empty; a policy needs at least one token to answer (a BOS token would do)"
        )
    context = getattr(policy.config, "max_position_embeddings", None)
    longest = virtual_tokens(policy) + max(len(prompt) for prompt in prompts)
    if context and longest + sampling.max_new_tokens > context:
        raise UserError(
            f"--output_max_length {sampling.max_new_tokens}: with prompts of {longest} tokens it exceeds the "
            f"model's context of {context}; shorten it or --max_prompt_length"
        )


def within_context(policy: Any, shapes: ShapePolicy, reserved: int = 0) -> ShapePolicy:
    """`shapes` that leave `reserved` tokens of the model's context free."""
    context = getattr(policy.config, "max_position_embeddings", None)
    return WithinContext(shapes, context - reserved) if context else shapes


def assemble(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    end_ids: frozenset[int],
    pad_token_id: int,
    pad_length: Any,
    device: torch.device,
) -> Rollout:
    """Put prompts and answers (cut after the first end token) into one right-padded record.

    `pad_length`: longest length in tokens → padded length (the backend's shape policy).
    """
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        end = next((i + 1 for i, token in enumerate(response) if token in end_ids), len(response))
        rows.append((list(prompt), list(response[:end])))
    width = pad_length(max(len(prompt) + len(response) for prompt, response in rows))
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    response_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    reasons = []
    for i, (prompt, response) in enumerate(rows):
        total = len(prompt) + len(response)
        input_ids[i, :total] = torch.tensor(prompt + response, dtype=torch.long)
        attention_mask[i, :total] = 1
        response_mask[i, len(prompt) : total] = True
        ended = bool(response) and response[-1] in end_ids
        reasons.append(StopReason.EOS if ended else StopReason.LENGTH)
    return Rollout(
        input_ids.to(device),
        attention_mask.to(device),
        response_mask.to(device),
        torch.tensor(reasons, device=device),
    )


def end_token_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's EOS and those of the model's generation config."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is not None:
        ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(ids)
