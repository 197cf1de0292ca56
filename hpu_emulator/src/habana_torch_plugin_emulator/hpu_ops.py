"""`torch.ops.hpu.*`: the device's own operators that libraries call by name.

Each is made of ordinary operators, so it runs on any device and is differentiable where they are. An operator that is
not here does not exist in `torch.ops.hpu`, which is how callers find out (`hasattr`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import fp8
from .optimizers import adamw_step
from .rotary import RotaryPosEmbeddingMode, apply_rotary_pos_emb, rotate_half, rotate_pairs

_library = torch.library.Library("hpu", "FRAGMENT")


def _operator(
    schema: str, key: str = "CompositeImplicitAutograd"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the function below as the operator of `schema`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _library.define(schema)
        _library.impl(schema.split("(", 1)[0], function, key)
        return function

    return register


@_operator(
    "rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, int mode) -> Tensor"
)
def _rotary(
    input: Tensor, sin: Tensor, cos: Tensor, position_ids: Tensor | None, offset: int, mode: int
) -> Tensor:
    return apply_rotary_pos_emb(input, cos, sin, position_ids, offset, RotaryPosEmbeddingMode(mode))


@_operator(
    "rotary_pos_embedding_backward(Tensor grad, Tensor sin, Tensor cos, Tensor? position_ids, int offset, int mode) -> Tensor"
)
def _rotary_backward(
    grad: Tensor, sin: Tensor, cos: Tensor, position_ids: Tensor | None, offset: int, mode: int
) -> Tensor:
    """The transpose of the rotation x cos + turn(x) sin: turn's transpose is minus turn."""
    if position_ids is not None or offset:
        raise NotImplementedError(
            "rotary_pos_embedding_backward: the emulator takes neither position_ids nor an offset"
        )
    turn = rotate_half if RotaryPosEmbeddingMode(mode) is RotaryPosEmbeddingMode.BLOCKWISE else rotate_pairs
    return (grad * cos - turn(grad * sin)).to(grad.dtype)


@_operator(
    "softmax_fp8(Tensor input, int dim, Tensor? input_scale=None, Tensor? output_scale=None, "
    "Tensor? inv_attn_heads=None, Tensor? fused_add=None) -> Tensor"
)
def _softmax_fp8(
    input: Tensor,
    dim: int,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
    inv_attn_heads: Tensor | None = None,
    fused_add: Tensor | None = None,
) -> Tensor:
    if input_scale is not None or output_scale is not None:
        raise NotImplementedError(
            "softmax_fp8: the emulator takes no fp8 scales; the input must be bf16 or fp32"
        )
    scores = input if inv_attn_heads is None else input * inv_attn_heads
    return torch.softmax(scores if fused_add is None else scores + fused_add, dim=dim)


@_operator(
    "cast_to_fp8_v2(Tensor input, Tensor? scale=None, bool stochastic_rounding=False, bool is_amax=False, "
    "ScalarType? dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)"
)
def _cast_to_fp8_v2(
    input: Tensor,
    scale: Tensor | None = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
    dtype: torch.dtype | None = None,
    scale_shape: object = None,
) -> tuple[Tensor, Tensor]:
    return fp8.cast_to_fp8_v2(
        input, scale, stochastic_rounding, is_amax, dtype or torch.float8_e4m3fn, scale_shape
    )


@_operator(
    "cast_from_fp8(Tensor input, Tensor? scale, ScalarType out_dtype, int[]? scale_shape=None) -> Tensor"
)
def _cast_from_fp8(
    input: Tensor, scale: Tensor | None, out_dtype: torch.dtype, scale_shape: object = None
) -> Tensor:
    return fp8.cast_from_fp8(input, scale, out_dtype, scale_shape)


@_operator(
    "fp8_gemm_v2(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, "
    "Tensor? A_scale_inv=None, Tensor? B_scale_inv=None, Tensor? bias=None, bool accumulate=False, "
    "int[]? B_scale_shape=None) -> Tensor"
)
def _fp8_gemm_v2(*arguments: Any, **keywords: Any) -> Tensor:
    return fp8.fp8_gemm_v2(*arguments, **keywords)


def _optimizer_adamw(
    gradient_vec: Sequence[Tensor],
    weight_vec: Sequence[Tensor],
    exp_avg_vec: Sequence[Tensor],
    exp_avg_sq_vec: Sequence[Tensor],
    neg_step_t: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float | Tensor,
    has_weight_decay: bool = True,
) -> None:
    adamw_step(
        gradient_vec,
        weight_vec,
        exp_avg_vec,
        exp_avg_sq_vec,
        neg_step_t,
        beta1,
        beta2,
        epsilon,
        weight_decay if has_weight_decay else 1.0,
    )


_ADAMW = (
    "(Tensor[] gradient_vec, Tensor(a!)[] weight_vec, Tensor(b!)[] exp_avg_vec, Tensor(c!)[] exp_avg_sq_vec, "
    "Tensor neg_step_t, float beta1, float beta2, float epsilon, "
)
# lazy mode passes the factor 1 - lr * weight_decay as a number, eager mode as a tensor and a flag
_operator("optimizer_adamw" + _ADAMW + "float weight_decay) -> ()")(_optimizer_adamw)
_operator("optimizer_adamw.eager" + _ADAMW + "Tensor weight_decay, bool has_weight_decay) -> ()")(
    _optimizer_adamw
)

_ACTIVATIONS = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu, "relu": torch.relu}


@_operator(
    "mixture_of_experts(Tensor hidden_states, Tensor expert_routing_table, Tensor router_weights, Tensor[] w1, "
    "Tensor[] w2, Tensor[] w3, bool permuted_weights, str activation, int experts_min, int experts_max) -> Tensor"
)
def _mixture_of_experts(
    hidden_states: Tensor,
    expert_routing_table: Tensor,
    router_weights: Tensor,
    w1: Sequence[Tensor],
    w2: Sequence[Tensor],
    w3: Sequence[Tensor],
    permuted_weights: bool,
    activation: str,
    experts_min: int,
    experts_max: int,
) -> Tensor:
    """Sum over each token's chosen experts of weight * w3(act(w1 x) * (w2 x)).

    hidden_states is (tokens, D), the table and the router weights (tokens, chosen). With `permuted_weights` the
    matrices are (out, in), else (in, out). Every expert sees every token, so that shapes never depend on the routing.
    """
    if activation not in _ACTIVATIONS:
        raise NotImplementedError(
            f"mixture_of_experts: the emulator knows {sorted(_ACTIVATIONS)}, not {activation!r}"
        )
    act = _ACTIVATIONS[activation]
    total = torch.zeros_like(hidden_states)
    for expert, matrices in zip(
        range(experts_min, experts_max + 1), zip(w1, w2, w3, strict=True), strict=True
    ):
        gate, up, down = matrices if permuted_weights else (matrix.t() for matrix in matrices)
        share = (router_weights * (expert_routing_table == expert)).sum(dim=-1, keepdim=True)
        linear = torch.nn.functional.linear
        hidden = act(linear(hidden_states, gate)) * linear(hidden_states, up)
        total = total + linear(hidden, down) * share.to(hidden_states.dtype)
    return total
