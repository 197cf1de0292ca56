"""Graphs for training: the forward and the backward of a module captured once per input shape, then replayed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .graphs import HPUGraph, input_hash


class _GraphedPass:
    """One input shape: static input, output and gradient buffers, and the two graphs between them."""

    def __init__(
        self, module: torch.nn.Module, forward: Callable[..., Any], inputs: Any, allow_unused_input: bool
    ) -> None:
        leaves, self.input_structure = tree_flatten(inputs)
        self.input_places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        static = list(leaves)
        for place in self.input_places:
            static[place] = leaves[place].detach().clone().requires_grad_(leaves[place].requires_grad)
        self.static_inputs: list[Tensor] = [static[place] for place in self.input_places]
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

        self.forward_graph = HPUGraph()
        self.forward_graph.capture_begin()
        try:
            with torch.enable_grad():
                args, kwargs = tree_unflatten(static, self.input_structure)
                outputs = forward(*args, **kwargs)
        finally:
            self.forward_graph.capture_end()
        self.output_leaves, self.output_structure = tree_flatten(outputs)
        self.output_places = [
            place for place, leaf in enumerate(self.output_leaves) if isinstance(leaf, Tensor)
        ]
        self.static_outputs: list[Tensor] = [self.output_leaves[place] for place in self.output_places]

        roots = [output for output in self.static_outputs if output.requires_grad]
        self.wanted = [tensor for tensor in (*self.static_inputs, *self.parameters) if tensor.requires_grad]
        self.output_gradients = {
            index: torch.empty_like(output)
            for index, output in enumerate(self.static_outputs)
            if output.requires_grad
        }
        self.backward_graph = HPUGraph()
        self.gradients: list[Tensor | None] = []
        if roots and self.wanted:
            self.backward_graph.capture_begin()
            try:
                self.gradients = list(
                    torch.autograd.grad(
                        roots,
                        self.wanted,
                        list(self.output_gradients.values()),
                        allow_unused=allow_unused_input,
                    )
                )
            finally:
                self.backward_graph.capture_end()
        self.static_outputs = [output.detach() for output in self.static_outputs]
        self.output_leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in self.output_leaves]
        self.fresh = True  # the capture has just computed the outputs for these very inputs

    def __call__(self, inputs: Any) -> Any:
        leaves = tree_flatten(inputs)[0]
        tensors = [leaves[place] for place in self.input_places]
        outputs = _Replay.apply(self, *tensors, *self.parameters)
        leaves = list(self.output_leaves)
        for place, output in zip(self.output_places, outputs, strict=True):
            leaves[place] = output
        return tree_unflatten(leaves, self.output_structure)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphed: _GraphedPass, *tensors: Tensor) -> tuple[Tensor, ...]:
        if not graphed.fresh:
            for buffer, tensor in zip(graphed.static_inputs, tensors, strict=False):
                buffer.detach().copy_(tensor)
            graphed.forward_graph.replay()
        graphed.fresh = False
        ctx.graphed = graphed
        ctx.needs = [tensor.requires_grad for tensor in tensors]
        outputs = tuple(output.detach() for output in graphed.static_outputs)
        ctx.mark_non_differentiable(
            *(out for i, out in enumerate(outputs) if i not in graphed.output_gradients)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        graphed: _GraphedPass = ctx.graphed
        for index, buffer in graphed.output_gradients.items():
            given = gradients[index]
            if given is None:
                buffer.zero_()
            else:
                buffer.copy_(given)
        graphed.backward_graph.replay()
        computed = iter(graphed.gradients)
        # copies, since autograd may keep what it gets as .grad, and the next replay writes over the buffers
        results = [next(computed) if needed else None for needed in ctx.needs]
        return (None, *(None if result is None else result.clone() for result in results))


class ModuleCacher:
    """`ModuleCacher(max_graphs=10)(model, inplace=True)`: trains `model` by capturing its forward and backward per shape.

    Past `max_graphs` shapes the least recently used graph is dropped (with `use_lfu`, the least frequently used).
    Outside training, and without gradients, the plain forward runs.
    """

    def __init__(self, max_graphs: int = 10) -> None:
        self.max_graphs = max_graphs

    def __call__(
        self,
        model: torch.nn.Module,
        use_lfu: bool = False,
        inplace: bool = False,
        allow_unused_input: bool = False,
        asynchronous: bool = False,
        have_grad_accumulation: bool = False,
        verbose: bool = False,
        dry_run: bool = False,
    ) -> torch.nn.Module:
        module = model if inplace else copy.copy(model)
        forward = module.forward
        passes: OrderedDict[int, _GraphedPass] = OrderedDict()
        uses: dict[int, int] = {}

        def graphed_forward(*args: Any, **kwargs: Any) -> Any:
            if not (module.training and torch.is_grad_enabled()):
                return forward(*args, **kwargs)
            inputs = (args, dict(sorted(kwargs.items())))
            key = hash(
                (input_hash(inputs), torch.is_autocast_enabled("hpu"), torch.get_autocast_dtype("hpu"))
            )
            if key not in passes:
                if len(passes) >= self.max_graphs:
                    victim = min(passes, key=uses.__getitem__) if use_lfu else next(iter(passes))
                    del passes[victim]
                passes[key] = _GraphedPass(module, forward, inputs, allow_unused_input)
            passes.move_to_end(key)
            uses[key] = uses.get(key, 0) + 1
            return passes[key](inputs)

        module.forward = graphed_forward
        module.clear_cache = passes.clear
        return module


def make_graphed_callables(
    callables: Any, sample_args: tuple[Any, ...], warmup: bool = False, allow_unused_input: bool = False
) -> Any:
    """Graphed versions of one module (or a tuple of them, with a tuple of sample arguments) for a training loop."""
    if not isinstance(callables, tuple):
        return make_graphed_callables((callables,), (sample_args,), warmup, allow_unused_input)[0]
    if not all(isinstance(module, torch.nn.Module) for module in callables):
        raise NotImplementedError("make_graphed_callables: the emulator graphs nn.Modules, not functions")
    cacher = ModuleCacher()
    return tuple(cacher(module, inplace=True, allow_unused_input=allow_unused_input) for module in callables)
