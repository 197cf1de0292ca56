"""The device: everything of `torch.hpu`, with HPU graphs and the switches that only this name has."""

from typing import Any

from habana_torch_plugin_emulator import device as _device
from habana_torch_plugin_emulator.attention import sdp_kernel
from habana_torch_plugin_emulator.device import *  # noqa: F403
from habana_torch_plugin_emulator.graphs import HPUGraph, graph, wrap_in_hpu_graph, wrap_in_hpu_graph_func
from habana_torch_plugin_emulator.memory import max_memory_reserved as max_memory_cached
from habana_torch_plugin_emulator.memory import memory_reserved as memory_cached
from habana_torch_plugin_emulator.module_cacher import ModuleCacher, make_graphed_callables

from . import graphs, metrics, random  # type: ignore[no-redef]


def __getattr__(name: str) -> Any:
    return getattr(_device, name)


def enable_dynamic_shape() -> None:
    """On hardware: one compiled graph may serve several shapes. The emulator counts a graph for every shape in any case."""


def disable_dynamic_shape() -> None:
    """On hardware: every shape has a compiled graph of its own, which is how the emulator counts."""


__all__ = [
    *_device.__all__,
    "HPUGraph",
    "ModuleCacher",
    "disable_dynamic_shape",
    "enable_dynamic_shape",
    "graph",
    "graphs",
    "make_graphed_callables",
    "max_memory_cached",
    "memory_cached",
    "metrics",
    "random",
    "sdp_kernel",
    "wrap_in_hpu_graph",
    "wrap_in_hpu_graph_func",
]
