"""From the score of a response to the reward of each token. Names and shapes: see `rlhf_hw.algorithms`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .masked import Moments, at_least_float32, combine, require_right_padded, require_same_shape, zero_padding


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards [B, R]: -kl_coef * kl everywhere, plus the score at the last real token; padding 0.

    Summed over a response this is R(x, y) = r(x, y) - beta * log(pi / rho) of Ziegler et al. 2019
    (arXiv 1909.08593) eq. 2; TRL 1.12 ppo_trainer.py L775-779, except that TRL puts the score one place later
    when there is room.

    Args: `scores` [B]; `kl` [B, R] nats per token; `mask` [B, R]; `kl_coef` reward per nat.
    Raises ValueError where shapes differ, where a real token follows padding, or a response has no real token
    (its score would have nowhere to stand).
    """
    penalty = -kl_coef * zero_padding(kl, mask)
    require_same_shape(scores=scores, responses=mask[:, 0])
    require_right_padded(mask)
    real = mask.bool()
    if not real[:, 0].all():
        row = int((~real[:, 0]).nonzero()[0])
        raise ValueError(f"response {row} has no real token to carry its score")
    is_last = real & ~torch.nn.functional.pad(real[:, 1:], (0, 1))
    return penalty + torch.where(is_last, at_least_float32(scores)[:, None], 0.0)


def normalise_scores(scores: Tensor, mean: float, std: float) -> Tensor:
    """(scores - mean) / std, shape [B].

    With the reward model's mean and standard deviation over chosen answers, scores get a scale that does not
    depend on the reward model. With those of `RunningMoments` this is TRL 0.11's `use_score_norm`, and with
    its std and mean 0 the `use_score_scaling` of TRL 0.11 (PPOTrainer.step).
    Raises ValueError unless `mean` is finite and `std` finite and positive.
    """
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"normalising scores needs a finite mean and a positive std, found {mean} and {std}")
    return (at_least_float32(scores) - mean) / std


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Scores [B] held within [-limit, limit], before the KL penalty joins them (TRL 0.11's `score_clip`).

    Raises ValueError unless `limit` is positive.
    """
    if not limit > 0:
        raise ValueError(f"score clip limit must be positive, found {limit}")
    return at_least_float32(scores).clamp(-limit, limit)


def apply_missing_eos_penalty(scores: Tensor, ended_with_eos: Tensor, penalty: float) -> Tensor:
    """Scores [B], less `penalty` for each response that never came to an end (TRL 1.12 ppo_trainer.py L757).

    Args: `ended_with_eos` [B] bool; `penalty` in units of score, subtracted, so positive punishes.
    Raises ValueError where shapes differ, or `penalty` is negative.
    """
    require_same_shape(scores=scores, ended_with_eos=ended_with_eos)
    if not penalty >= 0:
        raise ValueError(f"missing-EOS penalty is subtracted and must not be negative, found {penalty}")
    return at_least_float32(scores) - penalty * (~ended_with_eos.bool())


class RunningMoments:
    """Mean and standard deviation of every score seen so far, in float64 on the CPU.

    Each update merges a batch by Chan et al. 1983 eq. 2.1 (`masked.combine`), so the result does not depend on
    how the scores came in batches. With several processes, update with the combined moments of all: then
    every process holds the same state. TRL 0.11's RunningMoments, which `scale`s after the update.
    """

    def __init__(self) -> None:
        self._moments = Moments(*torch.zeros(3, dtype=torch.float64))

    def update(self, batch: Moments) -> None:
        """Take in the moments of one batch of scores, e.g. `masked_moments(scores)`.

        Raises ValueError if they are not finite: one NaN score would spoil every later reward.
        """
        batch = Moments(*(number.detach().to("cpu", torch.float64) for number in batch))
        if not all(torch.isfinite(number) for number in batch):
            raise ValueError(f"scores must be finite, found moments {[float(number) for number in batch]}")
        self._moments = combine([self._moments, batch])

    @property
    def count(self) -> int:
        """Number of scores seen."""
        return int(self._moments.count)

    @property
    def mean(self) -> float:
        """Mean of the scores seen; 0 before the first."""
        return float(self._moments.mean)

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 (scale by nothing) until two different scores were seen."""
        if self.count < 2 or self._moments.squared_deviations == 0:
            return 1.0
        return math.sqrt(float(self._moments.variance))

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, exact: what `load_state_dict` takes."""
        return {name: float(number) for name, number in self._moments._asdict().items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a `state_dict`. Raises ValueError if it is not one of RunningMoments."""
        if set(state) != set(Moments._fields):
            raise ValueError(f"running moments need {sorted(Moments._fields)}, found {sorted(state)}")
        self._moments = Moments(**{name: torch.tensor(v, dtype=torch.float64) for name, v in state.items()})
