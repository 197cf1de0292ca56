"""Generalised advantage estimation. Names and shapes: see `rlhf_hw.algorithms`."""

from __future__ import annotations

import torch
from torch import Tensor

from .masked import require_right_padded, zero_padding


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of right-padded responses, both [B, R] and 0 in padding.

    Schulman et al. 2016 (arXiv 1506.02438) eq. 16, as the recursion of TRL 1.12 ppo_trainer.py L787:

        delta[t]     = rewards[t] + gamma * values[t + 1] - values[t]
        advantage[t] = delta[t] + gamma * lam * advantage[t + 1]

    A response ends with its last real token, so the value and the advantage after it are 0: there is nothing
    to bootstrap from, also where the response was cut by the length limit (TRL 1.12 L791 does the same).
    Unlike TRL, whose terminal reward stands one place after the last token, nothing lies beyond the mask.

    Args: `rewards`, `values`, `mask` [B, R]; `gamma`, `lam` in [0, 1] per token. Vectorised over B.
    Raises ValueError where shapes differ, where a real token follows padding, or gamma or lam is out of range.
    """
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], found {number}")
    rewards = zero_padding(rewards, mask)
    values = zero_padding(values, mask)
    require_right_padded(mask)

    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (
        rewards + gamma * next_values - values
    )  # 0 in padding, so the recursion starts at the last real token
    advantage = torch.zeros_like(deltas[:, 0])
    backwards = []
    for delta in reversed(deltas.unbind(dim=1)):
        advantage = delta + gamma * lam * advantage
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values
