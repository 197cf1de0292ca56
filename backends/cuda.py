"""NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from backends.base import (
    Availability,
    Backend,
    BackendError,
    Choice,
    MemoryStatistics,
    Precision,
    local_rank,
)
from backends.quantization import bitsandbytes_config
from backends.shapes import DynamicShapes, ShapePolicy

#: Compute capability (Ampere) from which a card has bf16 units.
_BF16_SINCE = (8, 0)


@dataclass(frozen=True)
class Card:
    """A GPU that this process sees. `bf16`: whether it has units for it (from compute capability 8.0 on)."""

    name: str
    memory_bytes: int
    compute_capability: str
    bf16: bool


class CUDABackend(Backend):
    name = "cuda"
    device_type = "cuda"
    collective_backend = "nccl"
    launchers = ("torchrun", "accelerate")
    quantizes = True

    @classmethod
    def available(cls) -> Availability:
        if torch.version.cuda is None:
            return Availability(
                False, "the installed torch is a build without CUDA; install the CUDA build from pytorch.org"
            )
        if not torch.cuda.is_available():
            return Availability(
                False,
                "torch has CUDA but sees no GPU; check nvidia-smi, the driver and CUDA_VISIBLE_DEVICES",
            )
        return Availability(True, f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}")

    @classmethod
    def device_count(cls) -> int:
        return torch.cuda.device_count()

    @classmethod
    def cards(cls) -> list[Card]:
        """Every GPU that this process sees; none where torch has no CUDA, or no driver."""
        found = []
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            properties = torch.cuda.get_device_properties(index)
            capability = (properties.major, properties.minor)
            name, memory = properties.name, properties.total_memory
            found.append(Card(name, memory, ".".join(map(str, capability)), capability >= _BF16_SINCE))
        return found

    @property
    def device(self) -> torch.device:
        # one visible card a process (as schedulers may isolate them) is card 0 to each
        return torch.device("cuda", local_rank() % max(1, torch.cuda.device_count()))

    def training_argument_defaults(self) -> dict[str, Any]:
        defaults = super().training_argument_defaults()
        # one kernel for all weights; batches are copied from pinned memory while the device still works on the one before
        return defaults | {"optim": "adamw_torch_fused", "accelerator_config": {"non_blocking": True}}

    def refused_training_arguments(self) -> dict[str, str]:
        if find_spec("liger_kernel"):
            return {}
        return {"use_liger_kernel": "liger-kernel is not installed; pip install 'rlhf-hw[liger]'"}

    def precision(self, bf16: bool | None, fp16: bool | None) -> Precision:
        capability = torch.cuda.get_device_capability(self.device)
        has_bf16 = capability >= _BF16_SINCE
        card = torch.cuda.get_device_name(self.device)
        if fp16:
            return Precision(
                "fp16",
                torch.float16,
                "fp16 as asked; PPO overflows easily in it, prefer bf16 where it exists",
            )
        if bf16 and not has_bf16:
            raise BackendError(
                f"--bf16: {card} (compute capability {capability[0]}.{capability[1]}) has no bf16 units; "
                "use --fp16, or --bf16 False for fp32"
            )
        if bf16 or (bf16 is None and has_bf16):
            return Precision("bf16", torch.bfloat16, f"bf16: {card} has bf16 tensor cores")
        return Precision("no", torch.float32, "fp32 as asked" if has_bf16 else f"fp32: {card} has no bf16")

    def attention_implementation(self, precision: Precision) -> Choice:
        if precision.autocast == "no":
            return Choice("sdpa", "torch's fused attention; flash-attn knows no fp32")
        if find_spec("flash_attn") and torch.cuda.get_device_capability(self.device) >= (8, 0):
            return Choice("flash_attention_2", "flash-attn is installed")
        return Choice("sdpa", "torch's fused attention; install flash-attn for packing without a mask")

    def shape_policy(self, lengths: Sequence[int] = ()) -> ShapePolicy:
        return DynamicShapes(multiple_of=8)  # tensor cores work in tiles of eight

    def quantization_config(
        self, bits: int, double_quant: bool, quant_type: str, precision: Precision
    ) -> Any:
        return bitsandbytes_config(bits, double_quant, quant_type, precision)

    def forked_random_numbers(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device])

    def seed_everything(self, seed: int) -> None:
        from transformers import set_seed

        set_seed(seed)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def memory_statistics(self) -> MemoryStatistics:
        _, total = torch.cuda.mem_get_info(self.device)
        return MemoryStatistics(
            in_use=torch.cuda.memory_allocated(self.device),
            peak=torch.cuda.max_memory_allocated(self.device),
            limit=total,
        )

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "backend": self.name,
            "card": properties.name,
            "cards": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
