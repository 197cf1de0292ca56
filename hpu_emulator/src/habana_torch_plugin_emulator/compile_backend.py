"""`torch.compile(backend="hpu_backend")`: traces with AOTAutograd and runs the traced operators one by one on the device.

The hardware's backend compiles the same graphs; here nothing is fused, so this tests that a model can be traced, and
where it breaks, not how fast it is. Loaded through the `torch_dynamo_backends` entry point: importing torch._dynamo costs seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._refs
import torch._subclasses.fake_impls
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd


def _keep_strides_when_tracing() -> None:
    """PyTorch traces an hpu operator as if its result were always contiguous, as the hardware's are. The emulated device
    keeps strides as the CPU does, so a traced `view` would meet other strides when it runs."""

    def keeps_strides(device: torch.device | None) -> bool:
        return True

    torch._subclasses.fake_impls.is_noncontiguous_supported = keeps_strides
    torch._refs.is_noncontiguous_supported = keeps_strides


_keep_strides_when_tracing()


def _run_as_traced(graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    return make_boxed_func(graph_module.forward)


_aot_backend = aot_autograd(
    fw_compiler=_run_as_traced,
    partition_fn=min_cut_rematerialization_partition,
    keep_inference_input_mutations=True,
)


def hpu_backend(
    graph_module: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """The callable for a graph that dynamo captured. `options` (of torch.compile) tune the real backend; here they do nothing."""
    return _aot_backend(graph_module, list(example_inputs))
