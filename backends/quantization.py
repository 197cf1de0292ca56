"""Weights of 4 and 8 bits, as bitsandbytes holds them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from backends.base import BackendError, Precision

INSTALLED = find_spec("bitsandbytes") is not None


def bitsandbytes_config(bits: int, double_quant: bool, quant_type: str, precision: Precision) -> Any:
    """What `from_pretrained(quantization_config=…)` takes.

    Raises:
        BackendError: bitsandbytes is not installed.
    """
    if not find_spec("bitsandbytes"):
        raise BackendError(f"--qlora, --load_in_{bits}bit: needs bitsandbytes; pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_compute_dtype=precision.frozen_dtype,
    )


def leave_weights_as_they_were_quantized() -> None:
    """Keep bitsandbytes from laying out 4-bit weights anew where a CPU has AVX512-BF16 units.

    It would do so in place at the first pass without gradients, with scales rounded to bf16, and undo it, but for the
    rounding, at each saving: a frozen role would change under a run. And from then on no gradient flows through the
    layer (seen in bitsandbytes 0.50), so that an adapter below it would learn nothing after the first rollout.
    """
    import bitsandbytes.nn.modules as modules

    modules.has_avx512bf16 = lambda: False
