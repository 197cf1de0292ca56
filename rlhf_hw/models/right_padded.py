"""Running a decoder on rows that are padded on the right without a mask.

Under causal attention no real token sees what stands behind it, so a mask that hides padding at a row's end hides nothing
that counts. Without one, torch takes its fastest attention kernel, no [B, 1, T, T] mask is made, and transformers does not
ask the device whether the mask hides anything, which would make the host wait for it in every forward pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf_hw.models.unpadded import ADAPTERS, FAMILIES
from rlhf_hw.models.wrapping import attending_by, foreign_module, is_peft, trunk, unwrap, without_adapters

#: an attention that transformers makes no mask for
ATTENTION = "rlhf_hw_right_padded"

_maskless: WeakSet[nn.Module] = WeakSet()


def leave_masks_out(model: nn.Module) -> bool:
    """From now on `model`'s passes over right-padded rows may go without a mask; whether they will.

    They do for families whose attention is causal, goes through transformers' interface, and has no window (`FAMILIES`),
    under torch's own attention.
    """
    inner = without_adapters(unwrap(model))
    adapters = unwrap(model).peft_config.values() if is_peft(unwrap(model)) else ()
    known = (
        inner.config.model_type in FAMILIES
        and inner.config._attn_implementation == "sdpa"
        and getattr(inner.config, "sliding_window", None) is None
        and all(adapter.peft_type in ADAPTERS for adapter in adapters)
        and foreign_module(inner) is None
        # transformers 4's OPT makes its masks itself, whatever attention there is
        and not hasattr(trunk(model), "_update_causal_mask")
    )
    if known:
        _maskless.add(trunk(model))
    return known


def leaves_masks_out(model: nn.Module) -> bool:
    """Whether `model` needs no mask for right-padded rows."""
    return trunk(model) in _maskless


def without_mask(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, `model` takes right-padded rows [B, T] and no mask.

    Activations that are recomputed later, outside, take transformers' way without a mask: the same operations.
    """
    return attending_by(without_adapters(unwrap(model)).config, ATTENTION)


def attend_causally(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over whole rows: query [B, H, T, D], key and value [B, G, T, D] → ([B, T, H, D], None)."""
    found, _ = sdpa_attention_forward(module, query, key, value, None, dropout=dropout, scaling=scaling)
    return found, None


AttentionInterface.register(ATTENTION, attend_causally)
