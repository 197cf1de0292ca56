"""torch.hpu memory: bytes in use on an emulated device. What kernels use while they run is not counted."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from habana_torch_plugin_emulator import _C

Device: TypeAlias = int | str | torch.device | None


def device_index(device: Device = None) -> int:
    """The number of an HPU given as number, `hpu:1`, torch.device or None (the current one); else ValueError."""
    if isinstance(device, int):
        return device
    if device is None:
        return _C.current_device()
    found = torch.device(device)
    if found.type != "hpu":
        raise ValueError(f"Expected an hpu device, but got: {found}")
    return _C.current_device() if found.index is None else found.index


def memory_stats(device: Device = None) -> dict[str, Any]:
    """InUse, MaxInUse and Limit in bytes, NumAllocs and NumFrees, under the vendor's names.

    For the CPU, those of the current HPU: optimum-habana's trainer asks for its own device, also when that is the CPU.
    """
    if device is not None and not isinstance(device, int) and torch.device(device).type == "cpu":
        device = None
    stats: dict[str, Any] = _C.memory_stats(device_index(device))
    return stats


def memory_allocated(device: Device = None) -> int:
    return int(memory_stats(device)["InUse"])


def max_memory_allocated(device: Device = None) -> int:
    return int(memory_stats(device)["MaxInUse"])


def memory_reserved(device: Device = None) -> int:
    """The same as memory_allocated: the emulator keeps no cache."""
    return memory_allocated(device)


def max_memory_reserved(device: Device = None) -> int:
    return max_memory_allocated(device)


def reset_peak_memory_stats(device: Device = None) -> None:
    _C.reset_peak(device_index(device))


def reset_max_memory_allocated(device: Device = None) -> None:
    reset_peak_memory_stats(device)


def reset_accumulated_memory_stats(device: Device = None) -> None:
    torch.accelerator.reset_accumulated_memory_stats(device_index(device))


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Free and total bytes."""
    stats = memory_stats(device)
    return max(stats["Limit"] - stats["InUse"], 0), stats["Limit"]


def memory_summary(device: Device = None) -> str:
    return "\n".join(f"{name:<10} {value}" for name, value in memory_stats(device).items())


def empty_cache() -> None:
    """Nothing to do: freed memory goes back to the host at once."""
    _C.empty_cache()
