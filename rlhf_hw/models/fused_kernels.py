"""Liger's fused kernels (`--use_liger_kernel`) for norms, rotary positions and gated MLPs of a decoder.

Its fused losses stay out: they replace the whole model's forward pass and work out the loss in there, while a stage works it
out itself, of the head's output at its targets alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from rlhf_hw.errors import UserError
from rlhf_hw.models.wrapping import unwrap, without_adapters

FUSED_LOSSES = ("fused_linear_cross_entropy", "cross_entropy")


def check_kernel_config(config: Mapping[str, Any] | None) -> None:
    """Refuse Liger's losses.

    Raises:
        UserError: `--liger_kernel_config` asks for one.
    """
    for name in FUSED_LOSSES:
        if (config or {}).get(name):
            raise UserError(
                f"--liger_kernel_config: {name} works out the loss inside the model; here it is worked out of the head's output "
                "at the targets alone, so leave it out"
            )


def fuse_kernels(model: nn.Module, config: Mapping[str, Any] | None = None) -> None:
    """Put Liger's kernels into `model`, PEFT or not. `config`: which ones (`rope`, `rms_norm`, `swiglu`, …); else all.

    Raises:
        UserError: there are none for such a model, or the config asks for a loss or names a kernel that there is not.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    check_kernel_config(config)
    inner = without_adapters(unwrap(model))
    kind = inner.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"--use_liger_kernel: Liger has no kernels for a {kind} model; leave it out")
    # Liger itself passes over a name that it does not know
    known = set(inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[kind]).parameters) - {"model", *FUSED_LOSSES}
    unknown = sorted(set(config or {}) - known - set(FUSED_LOSSES))
    if unknown:
        raise UserError(
            f"--liger_kernel_config: Liger has no {unknown[0]} for a {kind} model; there are {', '.join(sorted(known))}"
        )
    _apply_liger_kernel_to_instance(model=inner, **{**dict.fromkeys(FUSED_LOSSES, False), **(config or {})})
