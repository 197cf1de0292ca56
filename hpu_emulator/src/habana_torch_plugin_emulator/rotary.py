"""Rotary position embedding with the argument lists of the HPU kernels.

The arithmetic is written out of differentiable torch operators in the order transformers uses, so that a model gives
the same digits with and without the kernel.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class RotaryPosEmbeddingMode(Enum):
    """BLOCKWISE rotates element i with i + D/2 (Llama); PAIRWISE rotates 2i with 2i + 1 (GPT-J, ChatGLM)."""

    BLOCKWISE = 0
    PAIRWISE = 1


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def positions_of(table: Tensor, x: Tensor, position_ids: Tensor | None, offset: int) -> Tensor:
    """The rows of `table` for the positions in x, shaped to broadcast with x (B, H, L, D).

    `table` is cos or sin, (max_length, D) with any number of leading ones, or already (B, 1, L, D). `position_ids` is
    (B, L) or (1, L). Without `position_ids` the L rows from `offset` on are taken.
    """
    if position_ids is None:
        length = x.shape[-2]
        return table if table.shape[-2] == length and offset == 0 else table[..., offset : offset + length, :]
    rows = table.reshape(table.shape[-2:]) if table.numel() == table.shape[-2] * table.shape[-1] else table
    if rows.dim() != 2:
        raise ValueError(
            f"rotary embedding: with position_ids the cos/sin table must be one (max_length, D) table, got {tuple(table.shape)}"
        )
    return rows[position_ids].unsqueeze(1)


def apply_rotary_pos_emb(
    p: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    offset: int = 0,
    mode: RotaryPosEmbeddingMode = RotaryPosEmbeddingMode.BLOCKWISE,
) -> Tensor:
    """p rotated by the angles in cos and sin; the result has p's shape and dtype.

    p is (B, H, L, D); when position_ids is None, p may have any shape with which cos and sin broadcast. A table
    narrower than D rotates the first elements of each head and passes the others through.
    """
    mode = RotaryPosEmbeddingMode(mode.value if isinstance(mode, Enum) else mode)
    if position_ids is not None or cos.dim() != p.dim() or offset:
        cos, sin = positions_of(cos, p, position_ids, offset), positions_of(sin, p, position_ids, offset)
    width = cos.shape[-1]
    rotated, passed = (p, None) if width == p.shape[-1] else (p[..., :width], p[..., width:])
    turned = rotate_half(rotated) if mode is RotaryPosEmbeddingMode.BLOCKWISE else rotate_pairs(rotated)
    out = ((rotated * cos) + (turned * sin)).to(p.dtype)
    return out if passed is None else torch.cat((out, passed), dim=-1)


class RotaryPosEmbeddingHelperV1:
    """`apply(p, cos, sin, offset)`: the L rows from `offset` on of the cos/sin tables."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, offset: int = 0, /) -> Tensor:
        return apply_rotary_pos_emb(p, cos, sin, None, offset)


class RotaryPosEmbeddingHelperV2:
    """`apply(p, cos, sin, position_ids)`: the rows that `position_ids` names."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None, /) -> Tensor:
        return apply_rotary_pos_emb(p, cos, sin, position_ids)


class RotaryPosEmbeddingHelperV3:
    """`apply(p, rope_cache)`: ChatGLM's layout. p is (L, B, H, D), rope_cache (L, B or 1, rotated/2, 2) = (cos, sin)."""

    @staticmethod
    def apply(p: Tensor, rope_cache: Tensor, /) -> Tensor:
        length, heads = p.shape[0], p.shape[2]
        width = rope_cache.shape[-2] * 2
        pairs = p[..., :width].reshape(length, -1, heads, width // 2, 2)
        cache = rope_cache[:length].reshape(length, -1, 1, width // 2, 2)
        rotated = torch.stack(
            (
                pairs[..., 0] * cache[..., 0] - pairs[..., 1] * cache[..., 1],
                pairs[..., 1] * cache[..., 0] + pairs[..., 0] * cache[..., 1],
            ),
            dim=-1,
        ).flatten(3)
        return torch.cat((rotated.to(p.dtype), p[..., width:]), dim=-1)
