"""What becomes `torch.hpu`: everything torch, transformers and accelerate ask of a device module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any

import torch

from habana_torch_plugin_emulator import _C, announce, collectives, random, settings
from habana_torch_plugin_emulator.memory import (
    Device,
    device_index,
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_max_memory_allocated,
    reset_peak_memory_stats,
)
from habana_torch_plugin_emulator.random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)
from habana_torch_plugin_emulator.streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    set_stream,
    stream,
)

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "amp",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "device_of",
    "empty_cache",
    "get_amp_supported_dtype",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "ipc_collect",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "random",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "set_stream",
    "stream",
    "synchronize",
]

_initialized = False


# ---- being there


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return int(_C.device_count())


def init() -> None:
    _lazy_init()


def is_initialized() -> bool:
    return _initialized


def _lazy_init() -> None:
    """torch calls this before it first makes a tensor on the device."""
    global _initialized
    if not _initialized:
        _initialized = True
        announce()


def _lazy_call(callable: Callable[[], object], **kwargs: Any) -> None:
    callable()


def _is_compiled() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    """A forked process may go on using the device: it is host memory."""
    return False


# ---- devices


def current_device() -> int:
    return int(_C.current_device())


def set_device(device: Device) -> None:
    if device is not None:
        _C.set_device(device_index(device))


def synchronize(device: Device = None) -> None:
    """Every kernel has finished when it returns; checks the device's number."""
    index = device_index(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"Invalid device index {index}: there are {device_count()} HPU(s)")
    _C.synchronize()


def _exchange_device(index: int) -> int:
    if index < 0:
        return -1
    previous = current_device()
    _C.set_device(index)
    return previous


def _maybe_exchange_device(index: int) -> int:
    return _exchange_device(index)


class device:
    """Makes a device current within a `with` block; None or -1 changes nothing."""

    def __init__(self, device: Device) -> None:
        self.index = -1 if device is None else device_index(device)
        self.previous = -1

    def __enter__(self) -> None:
        self.previous = _exchange_device(self.index)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _exchange_device(self.previous)


class device_of(device):
    """Makes the device of a tensor current, where it is an HPU."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.get_device() if tensor.device.type == "hpu" else None)


def get_device_name(device: Device = None) -> str:
    return settings.device_name()


def get_device_capability(device: Device = None) -> str:
    """The vendor's software version whose API this follows."""
    return "1.22.0"


def get_device_properties(device: Device = None) -> SimpleNamespace:
    """`name` and `total_memory` (bytes) of a device."""
    index = device_index(device)
    return SimpleNamespace(
        name=get_device_name(index), total_memory=memory_stats(index)["Limit"], multi_processor_count=24
    )


def can_device_access_peer(device: Device, peer: Device) -> bool:
    return True


def ipc_collect() -> None:
    """Nothing is shared between processes."""


# ---- precision


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def is_autocast_hpu_enabled() -> bool:
    return torch.is_autocast_enabled("hpu")


def set_autocast_hpu_enabled(enabled: bool) -> None:
    torch.set_autocast_enabled("hpu", enabled)


def get_autocast_hpu_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("hpu")


def set_autocast_hpu_dtype(dtype: torch.dtype) -> None:
    torch.set_autocast_dtype("hpu", dtype)


class _Autocast(torch.autocast):
    """torch.hpu.amp.autocast(): torch.autocast for this device."""

    def __init__(
        self, enabled: bool = True, dtype: torch.dtype = torch.bfloat16, cache_enabled: bool = True
    ) -> None:
        super().__init__("hpu", enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)


amp = SimpleNamespace(autocast=_Autocast)


# names of torch.hpu that few programs ask for: imported when they do
_ELSEWHERE = frozenset(
    (
        "HPUGraph",
        "ModuleCacher",
        "disable_dynamic_shape",
        "enable_dynamic_shape",
        "graph",
        "graphs",
        "make_graphed_callables",
        "metrics",
        "sdp_kernel",
        "wrap_in_hpu_graph",
        "wrap_in_hpu_graph_func",
    )
)


def __getattr__(name: str) -> Any:
    if name == "default_generators":
        return tuple(_C.default_generator(index) for index in range(device_count()))
    if name in _ELSEWHERE:
        return getattr(importlib.import_module("habana_frameworks.torch.hpu"), name)
    raise AttributeError(f"module 'torch.hpu' has no attribute {name!r}")


# ---- joining torch


def _tensor_is_hpu(self: torch.Tensor) -> bool:
    return self.device.type == "hpu"


def _tensor_hpu(
    self: torch.Tensor,
    device: Device = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
) -> torch.Tensor:
    """A copy of this tensor on an HPU; itself if it is there already."""
    target = torch.device("hpu", device_index(device))
    return self.to(target, non_blocking=non_blocking, memory_format=memory_format)


def _module_hpu(self: torch.nn.Module, device: Device = None) -> torch.nn.Module:
    """Moves all parameters and buffers to an HPU, in place."""
    target = torch.device("hpu", device_index(device))
    return self._apply(lambda tensor: tensor.to(target))


def configure() -> None:
    """Reads the settings again: devices, capacity, strictness. For use before the first tensor."""
    _C.set_device_count(settings.device_count())
    for index in range(device_count()):
        _C.set_limit(index, settings.memory_limit())
    set_strict(settings.strict())
    _C.set_tolerate_cpu_tensors(settings.tolerate_cpu_tensors())


def set_strict(kinds: frozenset[str] | set[str]) -> None:
    """What raises from now on: any of `dtypes`, `fallback_ops`, `devices`."""
    unknown = set(kinds).difference(settings.STRICT_KINDS)
    if unknown:
        raise ValueError(
            f"unknown kind(s) of strictness {sorted(unknown)}; choose from {settings.STRICT_KINDS}"
        )
    _C.set_strict(sum(getattr(_C, f"STRICT_{kind.upper()}") for kind in kinds))


def install() -> None:
    """Makes this module torch.hpu and gives tensors and modules their HPU names."""
    configure()
    torch._register_device_module("hpu", sys.modules[__name__])
    sys.modules["torch.hpu.random"] = random
    torch.Tensor.is_hpu = property(_tensor_is_hpu)
    torch.Tensor.hpu = _tensor_hpu
    torch.nn.Module.hpu = _module_hpu
    random.join_torch_manual_seed()
    # Backward in the calling thread, as for the CPU. In a thread of its own the engine may drop a finished graph while
    # the interpreter shuts down, and the process then aborts: seen in half of the programs that end with a backward.
    torch.autograd.set_multithreading_enabled(False)
    collectives.register()
