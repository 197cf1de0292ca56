"""`FusedSDPA`: scaled dot-product attention with the argument list of the HPU kernel.

Shapes below: B batch, H query heads, G key/value heads (H a multiple of G), L query length, S key length, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SOFTMAX_MODES = ("none", "fast", "fp32")
PADDING_SIDES = ("left", "right", "none")


def attention_bias(
    query: Tensor,
    key_length: int,
    attn_mask: Tensor | None,
    is_causal: bool,
    valid_seq_len: Tensor | None,
    padding_side: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """What is added to the scores: 0 where a key may be seen, -inf (or the caller's own bias) elsewhere.

    `valid_seq_len` is (B,): how many of the `key_length` tokens are not padding; the padding stands on `padding_side`.
    The result broadcasts to (B, H, L, S), or is None when nothing is hidden.
    """
    allowed: Tensor | None = None
    if is_causal:
        rows = torch.arange(query.shape[-2], device=query.device).unsqueeze(-1)
        allowed = rows >= torch.arange(key_length, device=query.device)
    if valid_seq_len is not None:
        positions = torch.arange(key_length, device=query.device)
        valid = valid_seq_len.to(query.device).view(-1, 1, 1, 1)
        inside = positions >= key_length - valid if padding_side == "left" else positions < valid
        allowed = inside if allowed is None else allowed & inside
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = attn_mask if allowed is None else allowed & attn_mask
    bias: Tensor | None = None
    if allowed is not None:
        bias = torch.zeros(allowed.shape, dtype=dtype, device=query.device).masked_fill(~allowed, -math.inf)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        bias = attn_mask.to(dtype) if bias is None else bias + attn_mask.to(dtype)
    return bias


def probabilities(
    query: Tensor, key: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype
) -> Tensor:
    """softmax(query key^T scale + bias) as (B, H, L, S) in `dtype`; a row that may see nothing becomes zeros."""
    scores = torch.matmul(query, key.transpose(-2, -1)).to(dtype) * scale
    if bias is None:
        return torch.softmax(scores, dim=-1)
    scores = scores + bias
    hidden_rows = torch.isneginf(scores).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(hidden_rows, 0.0), dim=-1).masked_fill(hidden_rows, 0.0)


def repeat_heads(tensor: Tensor, query_heads: int) -> Tensor:
    """(B, G, S, D) to (B, H, S, D): each key/value head serves H / G neighbouring query heads."""
    return (
        tensor
        if tensor.shape[-3] == query_heads
        else tensor.repeat_interleave(query_heads // tensor.shape[-3], dim=-3)
    )


def sum_heads(gradient: Tensor, heads: int) -> Tensor:
    """The transpose of `repeat_heads`: (B, H, S, D) to (B, G, S, D)."""
    if gradient.shape[-3] == heads:
        return gradient
    return gradient.unflatten(-3, (heads, gradient.shape[-3] // heads)).sum(dim=-3)


def _check(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, mode: str, side: str
) -> None:
    if query.dim() < 3 or key.dim() != query.dim() or value.dim() != query.dim():
        raise ValueError(
            f"FusedSDPA: query, key and value need the same rank (3 or more), got {query.dim()}, {key.dim()}, {value.dim()}"
        )
    if query.shape[-3] % key.shape[-3] or key.shape[-3] != value.shape[-3]:
        raise ValueError(
            f"FusedSDPA: {query.shape[-3]} query heads cannot share {key.shape[-3]} key and {value.shape[-3]} value heads"
        )
    if is_causal and attn_mask is not None:
        raise ValueError("FusedSDPA: give attn_mask or is_causal=True, not both")
    if mode.lower() not in SOFTMAX_MODES:
        raise ValueError(f"FusedSDPA: softmax_mode must be one of {SOFTMAX_MODES}, got {mode!r}")
    if side.lower() not in PADDING_SIDES:
        raise ValueError(f"FusedSDPA: the padding side must be one of {PADDING_SIDES}, got {side!r}")


class FusedSDPA(torch.autograd.Function):
    """`FusedSDPA.apply(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
    softmax_mode="None", recompute_mode=None, valid_sequence_lengths=None, padding_side="left")`.

    query is (B, H, L, D), key and value (B, G, S, D); the result is (B, H, L, D) in query's dtype. The softmax is
    taken in fp32, with `softmax_mode="fast"` in query's dtype. With recomputation on (the argument, or
    `sdp_kernel(enable_recompute=True)` around the call) the (B, H, L, S) probabilities are not kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool | None = False,
        scale: float | None = None,
        softmax_mode: str = "None",
        recompute_mode: bool | None = None,
        valid_seq_len: Tensor | None = None,
        seq_padding_type: str = "left",
    ) -> Tensor:
        is_causal = bool(is_causal)
        _check(query, key, value, attn_mask, is_causal, softmax_mode, seq_padding_type)
        scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        recompute = recompute_enabled() if recompute_mode is None else bool(recompute_mode)
        dtype = query.dtype if softmax_mode.lower() == "fast" else torch.float32
        if query.dtype == torch.float64:
            dtype = torch.float64
        with torch.autocast(device_type=query.device.type, enabled=False):
            all_keys, all_values = repeat_heads(key, query.shape[-3]), repeat_heads(value, query.shape[-3])
            bias = attention_bias(
                query, key.shape[-2], attn_mask, is_causal, valid_seq_len, seq_padding_type.lower(), dtype
            )
            weights = probabilities(query, all_keys, bias, scale, dtype)
            kept = torch.rand_like(weights, dtype=torch.float32) >= dropout_p if dropout_p > 0.0 else None
            dropped = weights if kept is None else weights * kept / (1.0 - dropout_p)
            output = torch.matmul(dropped.to(value.dtype), all_values)
        ctx.save_for_backward(query, key, value, bias, kept, None if recompute else weights)
        ctx.scale, ctx.dropout_p, ctx.softmax_dtype = scale, dropout_p, dtype
        ctx.mask_like = attn_mask if attn_mask is not None and attn_mask.requires_grad else None
        return output

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, kept, weights = ctx.saved_tensors
        heads, groups = query.shape[-3], key.shape[-3]
        with torch.autocast(device_type=query.device.type, enabled=False):
            all_keys, all_values = repeat_heads(key, heads), repeat_heads(value, heads)
            if weights is None:
                weights = probabilities(query, all_keys, bias, ctx.scale, ctx.softmax_dtype)
            dropped = weights if kept is None else weights * kept / (1.0 - ctx.dropout_p)
            output_gradient = output_gradient.to(value.dtype)
            value_gradient = torch.matmul(dropped.to(value.dtype).transpose(-2, -1), output_gradient)
            weights_gradient = torch.matmul(output_gradient, all_values.transpose(-2, -1)).to(weights.dtype)
            if kept is not None:
                weights_gradient = weights_gradient * kept / (1.0 - ctx.dropout_p)
            inner = (weights_gradient * weights).sum(dim=-1, keepdim=True)
            scores_gradient = weights * (weights_gradient - inner)
            scaled = (scores_gradient * ctx.scale).to(query.dtype)
            query_gradient = torch.matmul(scaled, all_keys)
            key_gradient = torch.matmul(scaled.transpose(-2, -1), query)
        mask_gradient = None
        if ctx.mask_like is not None:
            mask_gradient = scores_gradient.sum_to_size(ctx.mask_like.shape).to(ctx.mask_like.dtype)
        return (
            query_gradient,
            sum_heads(key_gradient, groups),
            sum_heads(value_gradient, groups),
            mask_gradient,
            *[None] * 7,
        )


class _KernelChoice:
    """What `sdp_kernel` set for the calls inside it."""

    recompute = False


def recompute_enabled() -> bool:
    return _KernelChoice.recompute


class sdp_kernel:
    """`with sdp_kernel(enable_recompute=True):` makes `FusedSDPA` inside recompute its probabilities in the backward pass."""

    def __init__(self, enable_recompute: bool = False) -> None:
        self.enable_recompute = enable_recompute
        self.previous: list[bool] = []

    def __enter__(self) -> sdp_kernel:
        self.previous.append(_KernelChoice.recompute)
        _KernelChoice.recompute = self.enable_recompute
        return self

    def __exit__(self, *exc_info: object) -> None:
        _KernelChoice.recompute = self.previous.pop()
