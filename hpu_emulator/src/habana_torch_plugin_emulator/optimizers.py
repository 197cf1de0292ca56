"""`FusedAdamW`, and the update its kernel makes.

Unlike `torch.optim.AdamW`, epsilon is added before the bias correction (as in BERT's and transformers' former AdamW),
so the two differ by about epsilon; and the default epsilon is 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def adamw_step(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    negative_step: float | Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_scale: float | Tensor,
) -> None:
    """One update in place. `negative_step` is minus the bias-corrected step size; `weight_scale` is 1 - lr * weight_decay."""
    for gradient, weight, first, second in zip(
        gradients, weights, first_moments, second_moments, strict=True
    ):
        gradient = gradient.to(first.dtype)
        first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        if isinstance(weight_scale, Tensor) or weight_scale != 1.0:
            weight.mul_(weight_scale)
        weight.add_((first / (second.sqrt() + epsilon)).mul_(negative_step).to(weight.dtype))


class FusedAdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay. Its state has the keys of `torch.optim.AdamW`: step, exp_avg, exp_avg_sq."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        moments_dtype: torch.dtype | None = None,
    ) -> None:
        if lr < 0.0:
            raise ValueError(f"FusedAdamW: the learning rate must not be negative, got {lr}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"FusedAdamW: each beta must be in [0, 1), got {betas}")
        if eps < 0.0:
            raise ValueError(f"FusedAdamW: eps must not be negative, got {eps}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "moments_dtype": moments_dtype,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # parameters that joined at different times have different step counts: one update per count
            by_step: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_step.setdefault(self._advance(parameter, group), []).append(parameter)
            for step, parameters in by_step.items():
                self._update(parameters, group, step)
        return loss

    def _advance(self, parameter: Tensor, group: dict[str, Any]) -> int:
        """Counts this update of `parameter`, making its state at the first."""
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise RuntimeError("FusedAdamW does not support sparse gradients")
        state = self.state[parameter]
        if not state:
            dtype = group.get("moments_dtype") or parameter.dtype
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(
                parameter, dtype=dtype, memory_format=torch.preserve_format
            )
        state["step"] += 1
        return int(state["step"])

    def _update(self, parameters: list[Tensor], group: dict[str, Any], step: int) -> None:
        beta1, beta2 = group["betas"]
        size = group["lr"]
        if group["bias_correction"]:
            size = size * math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
        adamw_step(
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            parameters,
            [self.state[parameter]["exp_avg"] for parameter in parameters],
            [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
            -size,
            beta1,
            beta2,
            group["eps"],
            1.0 - group["lr"] * group["weight_decay"],
        )
