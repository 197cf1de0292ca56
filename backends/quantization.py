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


def multiply_8_bits_in_one_way() -> None:
    """Let a CPU work with 8-bit weights as they are unpacked, in evaluation as in training.

    bitsandbytes 0.50 does so in training alone; in evaluation it rounds a layer's inputs to 8 bits too, but for the columns
    that are large in some row of the batch. PPO compares the two: its first ratios would be away from 1, and a score would
    depend on the rows beside it.

    Raises:
        BackendError: this bitsandbytes cannot train on such weights here.
    """
    import bitsandbytes
    from bitsandbytes.autograd import _functions

    unpacked = getattr(_functions, "MatMul8bitFp", None)
    if unpacked is None:
        raise BackendError(
            f"--load_in_8bit: bitsandbytes {bitsandbytes.__version__} does not train on 8-bit weights on a CPU; "
            "pip install --upgrade bitsandbytes"
        )

    def matmul(
        inputs: Any, weight: Any, out: Any = None, state: Any = None, *_: Any, bias: Any = None
    ) -> Any:
        return unpacked.apply(inputs, weight, out, bias, state)

    bitsandbytes.matmul = matmul
