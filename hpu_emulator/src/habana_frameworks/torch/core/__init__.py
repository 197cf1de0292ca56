"""`mark_step` and the switches of the bridge."""

from typing import Any

import torch
from habana_torch_plugin_emulator import accounting

from .. import hpu
from . import step_closure


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """Ends the graph being collected. In eager mode there is none, and this does nothing."""
    accounting.mark("mark_step")


def hpu_set_env(*args: Any, **kwargs: Any) -> None:
    """Prepares the hardware for inference with constant weights; there is nothing to prepare here."""


def hpu_initialize(
    model: torch.nn.Module | None = None,
    mark_only_scales_as_const: bool = False,
    mark_scales: bool = True,
    mark_non_scales: bool = True,
) -> None:
    """Marks weights as constants for the hardware's compiler; there is no compiler here."""


hpu_inference_set_env = hpu_set_env
hpu_inference_initialize = hpu_initialize

__all__ = [
    "hpu",
    "hpu_inference_initialize",
    "hpu_inference_set_env",
    "hpu_initialize",
    "hpu_set_env",
    "mark_step",
    "step_closure",
]
