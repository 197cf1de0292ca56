"""Drawing a token from the uniform number that belongs to its row and step.

`torch.multinomial` takes its randomness from one stream for the whole batch: change the batch, and every answer
changes. Here each row has a seed of its own and a token is the inverse of the row's cumulative distribution at a
uniform number fixed in advance. A side effect: about ten times cheaper than `multinomial` on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from transformers.generation import (
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlhf_hw.rollout.engine import Sampling

#: (prompts with what was drawn so far [B, T], scores [B, V]) → scores [B, V]
ScoreProcessor: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def uniforms(seeds: Sequence[int], steps: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers [B, steps] in [0, 1), row i drawn from `seeds[i]` alone."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers (run seed, update, prompt, …): SplitMix64 over the parts."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def sample_tokens(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens [B] drawn from softmax(`logits` [B, V]) by inverting the cumulative sum at `uniform` [B]."""
    # parallel sums of a GPU may step back by a rounding error: the running maximum keeps the search sound
    cumulative = torch.softmax(logits.float(), dim=-1).cumsum(dim=-1).cummax(dim=-1).values
    # the last entry is 1 but for rounding: scaling by it keeps the draw inside the distribution's support
    # what searchsorted would find; a Gaudi may run that on its host, at every token
    tokens = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(dim=-1)
    return tokens.clamp(max=logits.shape[-1] - 1)


def without_ends(scores: torch.Tensor, ends: torch.Tensor, too_early: torch.Tensor) -> torch.Tensor:
    """`scores` [B, V] that make the tokens `ends` impossible where it is `too_early` ([B, 1], or one for all)."""
    return torch.where(too_early, scores.index_fill(1, ends, float("-inf")), scores)


def leave_only(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Scores like `scores` [B, V] that leave `tokens` [B] alone possible."""
    return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)


class MinimumLength:
    """A logits processor: no token of `ends` before `minimum` tokens are drawn. Serves one call of `generate`.

    It counts by itself, and on the device: where shapes are static, `input_ids` has its final width from the start,
    and a step's number must not become part of a graph.
    """

    def __init__(self, minimum: int, ends: Sequence[int], device: torch.device) -> None:
        self.minimum = minimum
        self.ends = torch.tensor(ends, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        too_early = self.step < self.minimum
        self.step += 1
        return without_ends(scores, self.ends, too_early)


class NoRepeatedNGrams:
    """A logits processor: no n tokens in a row that the row holds already. Padding in front of a row is none of it."""

    def __init__(self, size: int, pad_token_id: int) -> None:
        self.process = NoRepeatNGramLogitsProcessor(size)
        self.pad_token_id = pad_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        padding = (input_ids == self.pad_token_id).long().cumprod(dim=1).bool()
        unlike_any_token = -1 - torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.process(torch.where(padding, unlike_any_token, input_ids), scores)


def score_processors(
    sampling: Sampling, ends: Sequence[int], pad_token_id: int, device: torch.device
) -> list[ScoreProcessor]:
    """What turns logits into those that a token is drawn from, in this order. Serves one batch of answers."""
    processors: list[ScoreProcessor] = []
    if sampling.min_new_tokens:
        processors.append(MinimumLength(sampling.min_new_tokens, ends, device))
    return processors + shaping_processors(sampling, pad_token_id)


def shaping_processors(sampling: Sampling, pad_token_id: int) -> list[ScoreProcessor]:
    """Those of `score_processors` that know nothing of steps, in this order: each row by itself, at any step."""
    processors: list[ScoreProcessor] = []
    if sampling.repetition_ngram:
        processors.append(NoRepeatedNGrams(sampling.repetition_ngram, pad_token_id))
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


class InverseCDFProcessor:
    """A logits processor for `generate(do_sample=False)`: leaves exactly the drawn token of each row possible.

    Serves one call of `generate`, whose steps it counts as `MinimumLength` does. `uniform`: [B, steps].
    """

    def __init__(self, uniform: torch.Tensor) -> None:
        self.uniform = uniform
        self.step = torch.zeros(1, dtype=torch.long, device=uniform.device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = sample_tokens(scores, self.uniform.index_select(1, self.step).squeeze(1))
        self.step += 1
        return leave_only(scores, tokens)
