"""The CPU in front of the user."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from backends.base import (
    Availability,
    Backend,
    BackendError,
    Choice,
    DecodingOptions,
    MemoryStatistics,
    Precision,
)
from backends.quantization import (
    INSTALLED,
    bitsandbytes_config,
    leave_weights_as_they_were_quantized,
    multiply_8_bits_in_one_way,
)
from backends.shapes import DynamicShapes, ShapePolicy


def bf16_units() -> str | None:
    """Name of this CPU's bf16 matrix units, or None when bf16 would be emulated and slow."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return None


class CPUBackend(Backend):
    name = "cpu"
    device_type = "cpu"
    collective_backend = "gloo"
    launchers = ("torchrun", "accelerate")
    quantizes = INSTALLED  # nobody buys a CPU for it: it is no advice where bitsandbytes is not there
    optimizer_takes_all = False
    memory_is_taken_when_asked_for = False
    memory_is_the_machines = True
    # Python, torch, transformers, PEFT, data sets, plots and whatever of DeepSpeed and W&B they import, and the code of
    # kernels as it is first used: measured, of models of one layer (benchmarks/results/estimate.md)
    taken_by_a_process = 550 * 2**20

    @classmethod
    def available(cls) -> Availability:
        return Availability(True, f"{len(os.sched_getaffinity(0))} cores")

    @classmethod
    def device_count(cls) -> int:
        return 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def training_argument_overrides(self) -> dict[str, Any]:
        overrides: dict[str, Any] = {"use_cpu": True, "dataloader_pin_memory": False}
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            overrides["ddp_backend"] = self.collective_backend
        return overrides

    def training_argument_defaults(self) -> dict[str, Any]:
        # one pass over the weights: a fifth of the time. transformers' own default from torch 2.8 on
        return super().training_argument_defaults() | {"optim": "adamw_torch_fused"}

    def precision(self, bf16: bool | None, fp16: bool | None) -> Precision:
        if fp16:
            raise BackendError(
                "--fp16: fp16 training needs loss scaling on a GPU; on a CPU use --bf16 or neither"
            )
        units = bf16_units()
        if bf16:
            reason = f"bf16 as asked ({units or 'this CPU has no bf16 units, expect it to be slow'})"
            return Precision("bf16", torch.bfloat16, reason)
        if bf16 is None and units:
            return Precision("bf16", torch.bfloat16, f"bf16: this CPU has {units} units")
        reason = "fp32 as asked" if bf16 is False else "fp32: this CPU has no bf16 units (AMX or AVX512-BF16)"
        return Precision("no", torch.float32, reason)

    def attention_implementation(self, precision: Precision) -> Choice:
        return Choice("sdpa", "torch's fused attention runs on every CPU")

    def shape_policy(self, lengths: Sequence[int] = ()) -> ShapePolicy:
        return DynamicShapes()

    def decoding_options(self, engine: str = "compact") -> DecodingOptions:
        return DecodingOptions(check_every=1, prefill_tokens=512, attention_in_fp32=True)

    def quantization_config(
        self, bits: int, double_quant: bool, quant_type: str, precision: Precision
    ) -> Any:
        config = bitsandbytes_config(bits, double_quant, quant_type, precision)
        if bits == 8:
            multiply_8_bits_in_one_way()
        else:
            leave_weights_as_they_were_quantized()
        return config

    @property
    def leaves_padding_out(self) -> bool:
        return True

    def seed_everything(self, seed: int) -> None:
        from transformers import set_seed

        set_seed(seed)

    def synchronize(self) -> None:
        return None

    def memory_statistics(self) -> MemoryStatistics:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return MemoryStatistics(
            in_use=psutil.Process().memory_info().rss,
            peak=peak_kib * 1024,
            limit=psutil.virtual_memory().total,
        )

    def reset_peak_memory(self) -> None:
        """The kernel keeps one high-water mark per process; it cannot be reset without privileges."""

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "memory_bytes": psutil.virtual_memory().total,
            "bf16": bf16_units() or "none",
        }
