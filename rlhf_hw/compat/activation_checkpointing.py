"""`gradient_checkpointing_enable` became `activation_checkpointing_enable` in transformers 5.

The trainer calls it on the model it is given, the newer one with arguments that the older name never had. Retired
when optimum-habana's stack (transformers 4.55) is dropped: then `RecomputesActivations` keeps the newer name alone.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_hw.models.wrapping import trunk


class RecomputesActivations:
    """For modules that hold transformers models: hands the trainer's call on to each of `checkpointed_models`."""

    def checkpointed_models(self) -> list[nn.Module]:
        """The transformers (or PEFT) models inside."""
        raise NotImplementedError

    def checkpointing_enabled(self) -> None:
        """Called once each of them recomputes."""

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """As transformers 4 calls it."""
        for model in self.checkpointed_models():
            _enable(model, gradient_checkpointing_kwargs)
        self.checkpointing_enabled()

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """As transformers 5 calls it: `options` are `every_n_layers` and `offload`."""
        for model in self.checkpointed_models():
            _enable(model, activation_checkpointing_kwargs, **options)
        self.checkpointing_enabled()


def _enable(model: Any, kwargs: dict[str, Any] | None, **options: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs, **options)
    else:
        model.gradient_checkpointing_enable(kwargs)


def can_recompute(model: nn.Module) -> bool:
    """Whether layers of `model` are worked out again in the backward pass once that is enabled.

    transformers' own are; some of optimum-habana's are modules of its own that know nothing of it, and say nothing.
    """
    for module in trunk(model).modules():
        written = inspect.unwrap(type(module).forward)
        asks = "_gradient_checkpointing_func" in getattr(getattr(written, "__code__", None), "co_names", ())
        if asks or isinstance(module, GradientCheckpointingLayer):
            return True
    return False
