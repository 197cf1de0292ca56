"""HPU graphs: capture and replay, and the wrappers for inference that libraries use.

A replay runs the captured operators, not the Python that led to them: it reads the input buffers of the capture,
writes the results to the addresses they had at the capture, and repeats neither prints, nor hooks, nor branches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from . import accounting, settings
from .graph_recording import Layout, Program, Recorder, tensors_in


class HPUGraph:
    """`capture_begin()`, the operators, `capture_end()`; then `replay()` as often as wanted.

    Capturing runs the operators too, so their results hold values right away.

    Raises:
        RuntimeError: outside lazy mode; at an operator that makes the host wait for a value (`.item()`, `nonzero`, a
            copy to the CPU) between begin and end; on a replay before a capture.
    """

    def __init__(self) -> None:
        self.program: Program | None = None
        self._recorder: Recorder | None = None

    def capture_begin(self, dry_run: bool = False, inputs: Any = ()) -> None:
        """Starts recording. Tensors in `inputs` can be replaced at a replay (`replay_with`). `dry_run` runs all the same."""
        if not settings.lazy_mode():
            raise RuntimeError(
                "HPU graphs exist only in lazy mode: set PT_HPU_LAZY_MODE=1 before torch is imported"
            )
        if self._recorder is not None:
            raise RuntimeError("HPUGraph.capture_begin: this graph is being captured already")
        torch.clear_autocast_cache()  # a cast cached before would be frozen into the graph
        accounting.mark("graph capture")
        self._recorder = Recorder(Program(tensors_in(inputs)))
        self._recorder.__enter__()

    def capture_end(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            raise RuntimeError("HPUGraph.capture_end without capture_begin")
        recorder.__exit__(None, None, None)
        torch.clear_autocast_cache()
        accounting.mark("graph capture")
        recorder.program.finish()
        self.program = recorder.program

    def slots_of(self, tree: Any) -> list[int]:
        """While capturing: the numbers by which `replay_with` names the tensors in `tree`."""
        if self._recorder is None:
            raise RuntimeError("HPUGraph.slots_of: no capture is under way")
        return [self._recorder.program.slot(tensor) for tensor in tensors_in(tree)]

    def _captured(self) -> Program:
        if self.program is None:
            raise RuntimeError("HPUGraph.replay before anything was captured")
        return self.program

    def replay(self, asynchronous: bool = False) -> None:
        program = self._captured()
        with accounting.paused("graph replay"):
            program.run()

    def replay_with(self, inputs: list[Tensor], results: list[int]) -> list[Tensor]:
        """A replay on other inputs of the same shapes, giving fresh results: nothing of the capture is read or written."""
        program = self._captured()
        with accounting.paused("graph replay"):
            replaced = dict(zip(program.inputs, inputs, strict=True))
            for number, tensor in replaced.items():
                replaced[number] = with_layout(program.layouts[number], tensor)
            values = program.run(replaced, results)
        return [values[number] for number in results]

    def reset(self) -> None:
        self.program = None

    destroy = reset

    def clear_inputs(self) -> None:
        """Frees the input buffers; the graph can then only be replayed on other inputs."""
        for number in self._captured().inputs:
            self._captured().outside.pop(number, None)


def with_layout(layout: Layout, tensor: Tensor) -> Tensor:
    """`tensor`, copied if need be so that its strides and offset are those that the graph was captured with."""
    if tensor.shape != layout.shape or tensor.dtype != layout.dtype:
        raise ValueError(
            f"HPU graph: captured with an input of {tuple(layout.shape)} {layout.dtype}, "
            f"replayed with {tuple(tensor.shape)} {tensor.dtype}"
        )
    if (tensor.stride(), tensor.storage_offset()) == (layout.stride, layout.offset):
        return tensor
    memory = torch.empty(layout.storage_elements(), dtype=tensor.dtype, device=tensor.device)
    return memory.as_strided(layout.shape, layout.stride, layout.offset).copy_(tensor)


@contextmanager
def graph(hpu_graph: HPUGraph, stream: Any = None, pool: Any = None) -> Iterator[HPUGraph]:
    """`with graph(g):` captures what runs inside into g."""
    hpu_graph.capture_begin()
    try:
        yield hpu_graph
    finally:
        hpu_graph.capture_end()


@dataclass
class CachedParams:
    """A captured graph and the buffers that it reads and writes."""

    graph_inputs: Any
    graph_outputs: Any
    graph: HPUGraph


def input_hash(inputs: Any, with_views: bool = False) -> int:
    """A number equal for inputs that one graph can serve: same structure, tensor shapes and dtypes, other values equal.

    Objects without an equality of their own count as equal only to themselves.
    """
    leaves, structure = tree_flatten(inputs)
    parts: list[Any] = [str(structure)]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            parts.append((leaf.shape, leaf.dtype, leaf.device))
            if with_views:
                parts.append((leaf.stride(), leaf.storage_offset()))
        else:
            try:
                parts.append((type(leaf), hash(leaf)))
            except TypeError:
                parts.append((type(leaf), id(leaf)))
    return hash(tuple(parts))


def copy_to(dst: Any, src: Any) -> None:
    """Copies every tensor in `src` into the tensor at the same place in `dst`; other leaves are left alone."""
    targets, sources = tree_flatten(dst)[0], tree_flatten(src)[0]
    if len(targets) != len(sources):
        raise ValueError(f"copy_to: {len(sources)} values for {len(targets)} places")
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            if isinstance(target, Tensor) and target is not source:
                target.copy_(source)


class _GraphedForward:
    """The forward of a wrapped module: one graph per hash of the inputs."""

    def __init__(
        self,
        forward: Callable[..., Any],
        disable_tensor_cache: bool,
        hash_with_views: bool,
        max_graphs: int | None,
    ) -> None:
        self.forward = forward
        self.disable_tensor_cache = disable_tensor_cache
        self.hash_with_views = hash_with_views
        self.max_graphs = max_graphs
        self.cache: dict[int, CachedParams] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("bypass_hpu_graphs", False):
            return self.forward(*args, **kwargs)
        inputs = (args, dict(sorted(kwargs.items())))
        key = input_hash(inputs, self.hash_with_views)
        cached = self.cache.get(key)
        if cached is None:
            if self.max_graphs is not None and len(self.cache) >= self.max_graphs:
                return self.forward(*args, **kwargs)
            return self._capture(key, inputs)
        if self.disable_tensor_cache:
            return self._replay_fresh(cached, inputs)
        copy_to(cached.graph_inputs, inputs)
        cached.graph.replay()
        return cached.graph_outputs

    def _capture(self, key: int, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        hpu_graph = HPUGraph()
        hpu_graph.capture_begin(inputs=inputs)
        try:
            outputs = self.forward(*inputs[0], **inputs[1])
            slots = hpu_graph.slots_of(outputs) if self.disable_tensor_cache else []
        finally:
            hpu_graph.capture_end()
        if self.disable_tensor_cache:
            # no buffer is kept: the outputs remember the slots of their tensors instead
            numbers = iter(slots)
            places = tree_map(
                lambda leaf: _Place(next(numbers)) if isinstance(leaf, Tensor) else leaf, outputs
            )
            hpu_graph.clear_inputs()
            self.cache[key] = CachedParams(None, places, hpu_graph)
        else:
            kept = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs)
            self.cache[key] = CachedParams(inputs, kept, hpu_graph)
        return outputs

    def _replay_fresh(self, cached: CachedParams, inputs: Any) -> Any:
        leaves, structure = tree_flatten(cached.graph_outputs)
        numbers = [leaf.number for leaf in leaves if isinstance(leaf, _Place)]
        tensors = iter(cached.graph.replay_with(tensors_in(inputs), numbers))
        return tree_unflatten(
            [next(tensors) if isinstance(leaf, _Place) else leaf for leaf in leaves], structure
        )

    def clear_cache(self) -> None:
        self.cache.clear()

    def clear_inputs(self) -> None:
        """Frees the graphs' input and output buffers, and with them the graphs, which need them to run again."""
        if not self.disable_tensor_cache:
            self.cache.clear()


@dataclass(frozen=True)
class _Place:
    """Where a tensor stood in the outputs, and its slot in the program."""

    number: int


def wrap_in_hpu_graph_func(
    func: Callable[..., Any],
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    hash_with_views: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
    verbose: bool = False,
) -> Callable[..., Any]:
    """`func` with its operators captured at the first call of each input shape and replayed afterwards."""
    graphed = _GraphedForward(func, disable_tensor_cache, hash_with_views, max_graphs)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return graphed(*args, **kwargs)

    wrapped.clear_cache = graphed.clear_cache  # type: ignore[attr-defined]
    wrapped.clear_inputs = graphed.clear_inputs  # type: ignore[attr-defined]
    return wrapped


def wrap_in_hpu_graph(
    module: torch.nn.Module,
    asynchronous: bool = False,
    disable_tensor_cache: bool = False,
    hash_with_views: bool = False,
    dry_run: bool = False,
    max_graphs: int | None = None,
    verbose: bool = False,
) -> torch.nn.Module:
    """Makes `module.forward` capture a graph at the first call of each input shape and replay it afterwards.

    The module is changed in place and returned. With the tensor cache (the default) the inputs of a shape's first call
    become the graph's input buffers and every call gives the same output tensors, overwritten at the next call; with
    `disable_tensor_cache` each call gives new ones. A call with `bypass_hpu_graphs=True` runs the plain forward.
    At more than `max_graphs` shapes the plain forward runs for the others. `module.clear_cache()` drops the graphs.
    `asynchronous`, `dry_run` and `verbose` are accepted; the emulator runs at once in any case.
    """
    wrapped = wrap_in_hpu_graph_func(
        module.forward, asynchronous, disable_tensor_cache, hash_with_views, dry_run, max_graphs, verbose
    )
    module.forward = wrapped
    module.clear_cache = wrapped.clear_cache  # type: ignore[attr-defined]
    module.clear_inputs = wrapped.clear_inputs  # type: ignore[attr-defined]
    return module
