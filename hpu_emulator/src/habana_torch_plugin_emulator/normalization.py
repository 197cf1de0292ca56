"""`FusedRMSNorm` and `FusedClipNorm` with the argument lists of the HPU kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class FusedRMSNorm:
    """`FusedRMSNorm.apply(x, weight, eps)`: x / rms(x) over the last dimension, times weight; computed in fp32."""

    @staticmethod
    def apply(
        x: Tensor, weight: Tensor, eps: float, use_stages: bool = True, fast_math: int = 0, /
    ) -> Tensor:
        """x is (..., D), weight (D,); the result has the wider of the two dtypes. The last two arguments only tune the kernel."""
        wide = x.to(torch.float32) if x.dtype != torch.float64 else x
        variance = wide.pow(2).mean(-1, keepdim=True)
        return weight * (wide * torch.rsqrt(variance + eps)).to(x.dtype)


class FusedClipNorm:
    """`FusedClipNorm(parameters, max_norm).clip_norm(parameters)`: clips gradients in place, returns the norm before."""

    def __init__(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        self.parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        self.max_norm = float(max_norm)

    def clip_norm(self, parameters: Iterable[Tensor] | None = None) -> Tensor:
        """The norm is a tensor (1,): of another shape, optimum-habana's trainer does not log it."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters if parameters is None else parameters, self.max_norm
        )
        return norm.reshape(1)
