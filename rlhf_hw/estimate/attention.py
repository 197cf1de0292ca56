"""Attention as it is where decoders run on real tokens alone (`rlhf_hw/models/unpadded.py`), of rows that are all full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from rlhf_hw.models.unpadded import can_leave_padding_out
from rlhf_hw.models.wrapping import unwrap, without_adapters

_NAME = "rlhf_hw_estimated_rows"


@contextmanager
def rows_apart(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, those of `models` that could leave padding out keep in attention what they then keep: fp32, row by row.

    They are given their rows side by side all the same: which tokens are real is not to be asked of fake ones.
    """
    configs = [without_adapters(unwrap(model)).config for model in models if can_leave_padding_out(model)]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query [B, H, T, D], key and value [B, G, T, D] → ([B, T, H, D], None); see `unpadded.attend_by_rows`."""
    grouped = key.shape[1] != query.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        rows = zip(*(tensor.float().split(1) for tensor in (query, key, value)), strict=True)
        answers = [
            nn.functional.scaled_dot_product_attention(
                *row, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
            )
            for row in rows
        ]
        found = torch.cat(answers).transpose(1, 2).contiguous()
    return found.to(query.dtype), None


AttentionInterface.register(_NAME, _attend)
