"""Sums, moments and whitening over real tokens only. Names and shapes: see `rlhf_hw.algorithms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8  # TRL 1.12 ppo_trainer.py L267


class Moments(NamedTuple):
    """What is needed to know the mean and variance of values spread over several processes. 0-d tensors.

    Deviations are kept about the mean, not about zero: the difference of two large sums of squares would lose
    all its digits in float32, and not every accelerator has float64. To merge over processes, gather three
    numbers from each and `combine` them:

        rows = gather(torch.stack(moments)[None])           # [W, 3]
        moments = combine([Moments(*row) for row in rows])
    """

    count: Tensor  # number of real values
    mean: Tensor  # 0 where count is 0
    squared_deviations: Tensor  # sum of (value - mean) ** 2

    @property
    def variance(self) -> Tensor:
        """The unbiased (count - 1) variance. Raises ValueError for fewer than two values."""
        if self.count < 2:
            raise ValueError(
                f"variance needs at least 2 real tokens, found {int(self.count)}; use a larger batch"
            )
        return self.squared_deviations / (self.count - 1)


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32, or as they are where they are more precise. Any shape."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_same_shape(**tensors: Tensor) -> None:
    """Raises ValueError, naming each tensor and its shape, unless all shapes are equal.

    Broadcasting is refused on purpose: [B] against [B, R] goes wrong without a word where B == R.
    """
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal, found {found}")


def require_right_padded(mask: Tensor) -> None:
    """Raises ValueError if in some row of `mask` [B, R] a real token follows padding."""
    real = mask.bool()
    resumes = (real[:, 1:] & ~real[:, :-1]).any(dim=1)
    if resumes.any():
        row = int(resumes.nonzero()[0])
        raise ValueError(f"mask must be right padded; in row {row} a real token follows padding")


def zero_padding(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is nonzero, 0 elsewhere, in at least float32. Any shape, the same for both.

    A select and not a product: inf or NaN in padding times zero would still be NaN.
    """
    require_same_shape(values=values, mask=mask)
    return torch.where(mask.bool(), at_least_float32(values), 0.0)


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the real `values`: over everything, or over dimension `dim`. Shapes equal, else ValueError."""
    return zero_padding(values, mask).sum(dim=dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the real `values` (TRL 1.12 ppo_trainer.py L237): over everything, or over dimension `dim`.

    NaN where nothing is real: the mean of nothing is not a number, and finding out would stop the device.
    Shapes equal, else ValueError.
    """
    return masked_sum(values, mask, dim) / mask.bool().sum(dim=dim)


def masked_moments(values: Tensor, mask: Tensor | None = None) -> Moments:
    """Count, mean and squared deviations of the real `values` of any shape (without `mask`: of all of them).

    Two passes: the mean first, then the deviations from it, each corrected by the residual that rounding left
    in the mean (Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 1.7).
    Raises ValueError where the shapes differ.
    """
    real = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    kept = zero_padding(values, real)
    count = real.sum().to(kept.dtype)
    divisor = count.clamp(min=1)
    rough_mean = kept.sum() / divisor
    deviations = torch.where(real, kept - rough_mean, 0.0)
    residual = deviations.sum()
    return Moments(
        count, rough_mean + residual / divisor, deviations.square().sum() - residual.square() / divisor
    )


def combine(parts: Sequence[Moments]) -> Moments:
    """The moments of the union of `parts`: pairwise merge of Chan et al. 1983 eq. 2.1, for any number of parts.

    Each process must pass the parts in one order (that of rank) to get the very same bits.
    Raises ValueError without any part.
    """
    if not parts:
        raise ValueError("combine needs at least one Moments")
    counts, means, squared_deviations = (torch.stack(column) for column in zip(*parts, strict=True))
    count = counts.sum()
    mean = (counts * means).sum() / count.clamp(min=1)
    return Moments(count, mean, (squared_deviations + counts * (means - mean).square()).sum())


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of the real `values`, 0-d (TRL 1.12 ppo_trainer.py L245).

    Raises ValueError where shapes differ, or for fewer than two real values.
    """
    return masked_moments(values, mask).variance


def whiten_with(values: Tensor, mask: Tensor, moments: Moments, shift_mean: bool = True) -> Tensor:
    """`values` scaled to unit variance, and to zero mean if `shift_mean`, by the given moments; padding 0.

    Shapes as `values`. `moments` are those of these values, or of those of all processes together: then each
    process whitens its share as one process would whiten the whole. The formula is TRL 1.12
    ppo_trainer.py L264: (value - mean) * rsqrt(variance + 1e-8), plus the mean again without `shift_mean`.
    Raises ValueError where shapes differ, or for moments of fewer than two values.
    """
    whitened = (at_least_float32(values) - moments.mean) * torch.rsqrt(moments.variance + WHITENING_EPSILON)
    return zero_padding(whitened if shift_mean else whitened + moments.mean, mask)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`whiten_with` the moments of `values` themselves."""
    return whiten_with(values, mask, masked_moments(values, mask), shift_mean)
