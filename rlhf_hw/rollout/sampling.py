"""Drawing a token from the uniform number that belongs to its row and step.

`torch.multinomial` takes its randomness from one stream for the whole batch: change the batch, and every answer
changes. Here each row has a seed of its own and a token is the inverse of the row's cumulative distribution at a
uniform number fixed in advance. A side effect: about ten times cheaper than `multinomial` on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
    tokens = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)
    return tokens.clamp(max=logits.shape[-1] - 1)


class InverseCDFProcessor:
    """A logits processor for `generate(do_sample=False)`: leaves exactly the drawn token of each row possible.

    `prompt_width` is the number of columns before the first new token.
    """

    def __init__(self, uniform: torch.Tensor, prompt_width: int) -> None:
        self.uniform = uniform
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_width
        tokens = sample_tokens(scores, self.uniform[:, step])
        chosen = torch.full_like(scores, float("-inf"))
        return chosen.scatter_(1, tokens[:, None], 0.0)
