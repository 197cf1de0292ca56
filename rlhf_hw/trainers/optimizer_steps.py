"""What PPO adds to an optimizer step: none along a gradient that is no number, and a critic with settings of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


def has_finite_gradients(model: nn.Module) -> bool:
    """Whether no gradient of `model` holds inf or NaN; of one that is shared out, this process's part. Waits for the
    device, once."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in gradients]
    sums = [gradient.sum(dtype=torch.float32) for gradient in local]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())


class FiniteStepsOnly(TrainerCallback):
    """Leaves an optimizer step out, for policy and critic alike, where a gradient of either is not finite.

    One such step would make every weight NaN, in fp32 and bf16 too, where no loss scaling looks at gradients. With
    fp16 the loss scaling leaves it out by itself, and with DeepSpeed from stage 1 on its engine; they are only counted.
    At stage 0 the engine looks at none, and steps within the backward pass.

    Args:
        model: policy and critic.
        on_step: called after each optimizer step, with whether it was taken.
        scaled: whether something else leaves such steps out.
        within_backward: whether gradients are to be looked at when the optimizer itself is about to step.
        parts: whether each process has another part of the gradients, so that all must be asked.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Any,
        on_step: Callable[[bool], None],
        *,
        scaled: bool,
        within_backward: bool,
        parts: bool = False,
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.on_step = on_step
        self.scaled = scaled
        self.within_backward = within_backward
        self.parts = parts
        self.finite = True

    def on_train_begin(self, *_args: Any, optimizer: Any = None, **_kwargs: Any) -> None:
        if self.within_backward:
            while hasattr(optimizer, "optimizer"):  # inside accelerate's, and DeepSpeed's
                optimizer = optimizer.optimizer
            optimizer.register_step_pre_hook(lambda *_: self._look())

    def on_pre_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        if not self.within_backward:
            self._look()

    def _look(self) -> None:
        self.finite = self.scaled or has_finite_gradients(self.model)
        if self.parts:
            finite = torch.tensor(float(self.finite), device=self.accelerator.device)
            self.finite = bool(self.accelerator.reduce(finite) == self.accelerator.num_processes)
        if not self.finite:
            self.model.zero_grad(set_to_none=True)  # no gradient, no step: no momentum and no decay either

    def on_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        self.on_step(self.finite and not self.accelerator.optimizer_step_was_skipped)
        self.finite = True


def give_critic_its_own(
    optimizer: torch.optim.Optimizer,
    critic: set[nn.Parameter],
    decayed: set[nn.Parameter],
    learning_rate: float | None,
    weight_decay: float | None,
) -> None:
    """Move the weights of `critic` into parameter groups with a learning rate and weight decay of their own.

    None leaves the optimizer's. Only `decayed` weights (no biases, no norms) get the weight decay.
    """
    for group in list(optimizer.param_groups):
        common = {name: value for name, value in group.items() if name != "params"}
        weights, group["params"] = group["params"], [w for w in group["params"] if w not in critic]
        for part in (critic & decayed, critic - decayed):
            own = {**common, "params": [weight for weight in weights if weight in part]}
            if learning_rate is not None:
                own["lr"] = learning_rate
            if weight_decay is not None and part <= decayed:
                own["weight_decay"] = weight_decay
            if own["params"]:
                optimizer.add_param_group(own)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
