"""The extension. Sizes are bytes, devices are numbers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

STRICT_DTYPES: int
STRICT_FALLBACK_OPS: int
STRICT_DEVICES: int
explicit_fallbacks: int  # operators that have the fallback registered one by one

def device_count() -> int: ...
def set_device_count(count: int) -> None: ...
def current_device() -> int: ...
def set_device(device: int) -> None: ...
def synchronize() -> None: ...
def memory_stats(device: int = 0) -> dict[str, int]:
    """InUse, MaxInUse, Limit, NumAllocs, NumFrees, NumOOMs."""

def reset_peak(device: int = 0) -> None: ...
def set_limit(device: int, bytes: int) -> None:
    """Allocations beyond raise torch.OutOfMemoryError; 0 means no limit."""

def empty_cache() -> None: ...
def default_generator(device: int) -> torch.Generator: ...
def set_strict(flags: int) -> None: ...
def strict() -> int: ...
def set_tolerate_cpu_tensors(value: bool) -> None: ...
def tolerate_cpu_tensors() -> bool: ...
def create_hccl(gloo: torch.distributed.Backend, timeout_ms: int) -> torch.distributed.Backend: ...
def accounting_start(lazy: bool | None = None) -> None:
    """Counts from here on, adding to what is there. lazy=None: as PT_HPU_LAZY_MODE says."""

def accounting_stop() -> None:
    """Closes the graph being collected, with the reason `end of accounting`."""

def accounting_reset() -> None: ...
def accounting_active() -> bool: ...
def accounting_mark(reason: str) -> None:
    """Ends the graph being collected; nothing if it is empty or nothing is counted."""

def accounting_set_locator(locator: Callable[[str], str] | None) -> None:
    """Called with the operator's name at the first operator that makes a graph new; its answer is `location`."""

def accounting_graphs() -> list[dict[str, Any]]:
    """One for each distinct graph, in order of appearance: id, ops, runs, first_flush, cause_op, cause_shapes,
    cause_dtypes, location, flush_reason. A graph that is the beginning of an older one has no cause_op."""

def accounting_counts() -> dict[str, int]:
    """flushes, distinct, operators."""
