"""How far the policy has moved from the reference, and what that costs. See `rlhf_hw.algorithms` for names.

The per-token estimators take the log-probabilities p and q of the *sampled* token under policy and reference
and write d = log p - log q. Sampled from the policy, E[d] = KL(policy || reference). The k1, k2, k3 names are
those of J. Schulman, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html). `full` alone sums over
the vocabulary and so takes logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .losses import row_chunks
from .masked import at_least_float32, require_same_shape


def log_ratio(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d = logprobs - ref_logprobs in nats, in at least float32; shapes equal, else ValueError.

    As an estimate of KL this is k1: unbiased, may be negative for single tokens. TRL 1.12 ppo_trainer.py L774.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return at_least_float32(logprobs) - at_least_float32(ref_logprobs)


def clamped(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """max(d, 0): only what the policy likes better than the reference costs; no estimate of KL.

    Sun et al. 2023, "Exploring the impact of low-rank adaptation on RLHF" (arXiv 2309.09055), `clamped_kl`.
    """
    return log_ratio(logprobs, ref_logprobs).clamp(min=0)


def half_squared(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = d² / 2: never negative, low variance, biased (exact to second order in d). Also mse, squared_error."""
    return log_ratio(logprobs, ref_logprobs).square() / 2


def bregman(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 = exp(-d) - 1 + d: never negative and unbiased. TRL 1.12 ppo_trainer.py L774."""
    d = log_ratio(logprobs, ref_logprobs)
    return (
        torch.expm1(-d) + d
    )  # expm1: near d = 0 the difference is d² / 2, below the rounding of exp(-d) - 1


def jensen_shannon(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(max(log p - log m, 0) + max(log q - log m, 0)) / 2 with m = (p + q) / 2; Sun et al. 2023.

    At most log(2) / 2 nats a token, however far apart p and q are: one of the two terms is always 0. It has no
    estimate of the Jensen-Shannon divergence as its mean; the name is the paper's code's. In log space: p and q of a
    rare token would both be 0 in float32.
    """
    d = log_ratio(logprobs, ref_logprobs)
    # log p - log m = log 2 - log(1 + q / p), and of the two terms the one with the larger probability is not negative
    return (math.log(2) - torch.nn.functional.softplus(-d.abs())) / 2


def absolute(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """|d|: a penalty on moving either way; no estimate of KL."""
    return log_ratio(logprobs, ref_logprobs).abs()


def full(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(policy || reference) of the whole next-token distribution, exact: [..., V] twice -> [...].

    Takes logits, or log-probabilities over the vocabulary (their softmax is the same). Entries of probability
    0 under the policy add nothing. Computed a chunk of rows at a time.
    Raises ValueError where shapes differ.
    """
    require_same_shape(logits=logits, ref_logits=ref_logits)
    divergences = []
    for rows, ref_rows in zip(row_chunks(logits), row_chunks(ref_logits), strict=True):
        logp = at_least_float32(rows).log_softmax(dim=-1)
        d = logp - at_least_float32(ref_rows).log_softmax(dim=-1)
        p = logp.exp()
        divergences.append((p * d.masked_fill(p == 0, 0.0)).sum(dim=-1))
    return torch.cat(divergences).view(logits.shape[:-1])


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": log_ratio,
    "clamped_kl": clamped,
    "k2": half_squared,
    "k3": bregman,
    "jensen_shannon": jensen_shannon,
    "abs": absolute,
    "full": full,
}
NEEDS_LOGITS = frozenset({"full"})  # these take logits [B, R, V] in place of logprobs [B, R]


def per_token_kl(name: str, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimator `name` of KL(policy || reference), nats per token: [B, R] twice -> [B, R].

    For names in NEEDS_LOGITS both tensors are logits [B, R, V] instead. Padding is not looked at: whoever sums
    the result masks it. Raises ValueError for an unknown name, or where shapes differ.
    """
    if name not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {name!r}; known: {', '.join(KL_ESTIMATORS)}")
    return KL_ESTIMATORS[name](logprobs, ref_logprobs)


class FixedKLController:
    """A KL coefficient that stays what it is. `kl_coef` in reward per nat, not negative, else ValueError."""

    def __init__(self, kl_coef: float) -> None:
        if not (math.isfinite(kl_coef) and kl_coef >= 0):
            raise ValueError(f"KL coefficient must be finite and not negative, found {kl_coef}")
        self.kl_coef = kl_coef

    def update(self, current_kl: float, n_samples: int) -> None:
        """Nothing changes."""

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` takes."""
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a `state_dict`. Raises ValueError if it holds no `kl_coef`."""
        if "kl_coef" not in state:
            raise ValueError(f"KL controller state needs kl_coef, found {sorted(state)}")
        self.kl_coef = state["kl_coef"]


class AdaptiveKLController(FixedKLController):
    """A KL coefficient steered towards a target divergence: Ziegler et al. 2019 (arXiv 1909.08593) §2.2.

        error    = clip((current_kl - target) / target, -0.2, 0.2)
        kl_coef *= 1 + error * n_samples / horizon

    The paper's gain K_beta = 0.1 per update is here n_samples / horizon, so that speed does not depend on how
    many responses make an update (TRL 0.11's AdaptiveKLController).

    Args: `init_kl_coef` reward per nat; `target` nats per response (per-token KL summed over it), positive;
    `horizon` responses, positive. Raises ValueError otherwise.
    """

    MAX_ERROR = 0.2

    def __init__(self, init_kl_coef: float, target: float, horizon: int) -> None:
        super().__init__(init_kl_coef)
        for name, number in (("target", target), ("horizon", horizon)):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"adaptive KL {name} must be positive, found {number}")
        self.target = target
        self.horizon = horizon

    def update(self, current_kl: float, n_samples: int) -> None:
        """Steer after `n_samples` responses whose mean KL was `current_kl` (nats per response).

        Raises ValueError if `current_kl` is not finite, or if so many samples came at once that the
        coefficient could turn negative (MAX_ERROR * n_samples >= horizon).
        """
        if not math.isfinite(current_kl):
            raise ValueError(f"KL must be finite to steer by, found {current_kl}")
        error = min(max(current_kl / self.target - 1.0, -self.MAX_ERROR), self.MAX_ERROR)
        self.kl_coef *= 1.0 + error * self.gain(n_samples)

    def gain(self, n_samples: int) -> float:
        """How much of the relative error an update of so many responses makes good."""
        if self.MAX_ERROR * n_samples >= self.horizon:
            raise ValueError(
                f"adaptive KL horizon {self.horizon} is too short for {n_samples} samples an update; "
                f"it must exceed {self.MAX_ERROR * n_samples:g}"
            )
        return n_samples / self.horizon


class ProportionalKLController(AdaptiveKLController):
    """A KL coefficient steered with a gain of its own, whatever the number of responses in an update.

        error    = clip(current_kl / target - 1, -0.2, 0.2)
        kl_coef *= 1 + k_beta * error

    Ziegler et al. 2019 §2.2 with K_beta as it stands there (0.1); AlpacaFarm's AdaptiveKLController.

    Args: `init_kl_coef` reward per nat; `target` nats per response; `k_beta` in (0, 5): from 5 = 1 / 0.2 on the
    coefficient could turn negative. Raises ValueError otherwise.
    """

    def __init__(self, init_kl_coef: float, target: float, k_beta: float) -> None:
        super().__init__(init_kl_coef, target, horizon=1)
        if not 0 < k_beta < 1 / self.MAX_ERROR:
            raise ValueError(f"k_beta must lie between 0 and {1 / self.MAX_ERROR:g}, found {k_beta}")
        self.k_beta = k_beta

    def gain(self, n_samples: int) -> float:
        return self.k_beta
