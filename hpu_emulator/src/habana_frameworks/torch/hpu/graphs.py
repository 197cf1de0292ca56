"""HPU graphs."""

from habana_torch_plugin_emulator.graphs import (
    CachedParams,
    HPUGraph,
    copy_to,
    graph,
    input_hash,
    wrap_in_hpu_graph,
    wrap_in_hpu_graph_func,
)
from habana_torch_plugin_emulator.module_cacher import ModuleCacher, make_graphed_callables

__all__ = [
    "CachedParams",
    "HPUGraph",
    "ModuleCacher",
    "copy_to",
    "graph",
    "input_hash",
    "make_graphed_callables",
    "wrap_in_hpu_graph",
    "wrap_in_hpu_graph_func",
]
