"""Casts to and from 8-bit floats, with the argument lists of `torch.ops.hpu`.

The scale convention is the device's: a cast to fp8 multiplies by `scale`, a cast from fp8 multiplies by `scale` too, so
the second one takes the inverse of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def cast_to_fp8_v2(
    input: Tensor,
    scale: Tensor | None = None,
    stochastic_rounding: bool = False,
    is_amax: bool = False,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_shape: object = None,
) -> tuple[Tensor, Tensor]:
    """(input * scale, clamped to the range of `dtype`; the largest absolute value of input, or an empty tensor).

    `scale` must broadcast with input. A `dtype` that is not an 8-bit float is an ordinary cast, as some callers use it.
    """
    if stochastic_rounding:
        raise NotImplementedError("cast_to_fp8_v2: the emulator does not do stochastic rounding")
    if scale_shape is not None:
        raise NotImplementedError(
            "cast_to_fp8_v2: the emulator does not do scale_shape; give a scale that broadcasts with the input"
        )
    wide = input.to(torch.float32)
    amax = wide.detach().abs().amax() if is_amax else torch.empty(0, dtype=torch.float32, device=input.device)
    scaled = wide if scale is None else wide * scale
    if dtype in FP8_DTYPES:
        limit = torch.finfo(dtype).max
        scaled = scaled.clamp(-limit, limit)
    return scaled.to(dtype), amax


def cast_from_fp8(
    input: Tensor,
    scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    scale_shape: object = None,
) -> Tensor:
    """input * scale in `out_dtype`; `scale` is the inverse of the one the cast to fp8 took."""
    if scale_shape is not None:
        raise NotImplementedError(
            "cast_from_fp8: the emulator does not do scale_shape; give a scale that broadcasts with the input"
        )
    wide = input.to(torch.float32)
    return (wide if scale is None else wide * scale).to(out_dtype)


def fp8_gemm_v2(
    A: Tensor,
    trans_A: bool,
    B: Tensor,
    trans_B: bool,
    D: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    A_scale_inv: Tensor | None = None,
    B_scale_inv: Tensor | None = None,
    bias: Tensor | None = None,
    accumulate: bool = False,
    B_scale_shape: object = None,
) -> Tensor:
    """(A A_scale_inv) (B B_scale_inv) + bias in `out_dtype`, added to D when `accumulate`; products are summed in fp32."""
    if B_scale_shape is not None:
        raise NotImplementedError("fp8_gemm_v2: the emulator does not do B_scale_shape")
    left = A.to(torch.float32) if A_scale_inv is None else A.to(torch.float32) * A_scale_inv
    right = B.to(torch.float32) if B_scale_inv is None else B.to(torch.float32) * B_scale_inv
    left = left.transpose(-2, -1) if trans_A else left
    right = right.transpose(-2, -1) if trans_B else right
    product = torch.matmul(left, right)
    if bias is not None:
        product = product + bias
    if accumulate:
        if D is None:
            raise ValueError("fp8_gemm_v2: accumulate=True needs D")
        product = product + D
    return product.to(out_dtype)
