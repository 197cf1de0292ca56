"""Attention of one new token a row, in fp32 whatever the precision of the rest.

A CPU's fused attention takes four to five times as long for a single query in bf16 as in fp32, and more than the casts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_hw.models.wrapping import attending_by

ATTENTION = "rlhf_hw_decode"


def attention_in_fp32(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, `model` (without adapters around it, and `attends_by_interface`) attends in fp32."""
    return attending_by(model.config, ATTENTION)


def attend_in_fp32(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention "sdpa" of the same arguments: query [B, H, N, D], key and value [B, G, T, D] → [B, N, H, D]."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        found, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    return found.to(query.dtype), None


AttentionInterface.register(ATTENTION, attend_in_fp32)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
