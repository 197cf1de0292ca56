"""HPU graphs: the operators of a forward pass, recorded once for each shape of its inputs and replayed afterwards.

They exist in lazy mode only, and come from the Gaudi software (`habana_frameworks`), whatever drives the training. A
replay repeats no Python. So what is recorded is a decoder without its head, since the losses pick their positions by a
hook on the head; and what Python decides within it is part of the key under which a recording is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

#: Intel's own default of ModuleCacher
MOST_TRAINING_GRAPHS = 10
_RECORDINGS = "recorded_generation"
#: The input of a model that its attention writes into.
CACHE = "past_key_values"


@dataclass(frozen=True)
class HPUGraphSettings:
    """What is recorded: passes without gradients, passes that train. `most`: graphs of a model in one role."""

    inference: bool = False
    training: bool = False
    most: int | None = None
    disable_tensor_cache: bool = False


class Recordings:
    """The recorded forward passes of a module, those of each state of it apart.

    Two passes of one state and of equally shaped inputs must run the same operators on the same memory.
    """

    under_way = False

    def __init__(self, forward: Callable[..., Any], settings: HPUGraphSettings) -> None:
        self.forward = forward
        self.settings = settings
        self.by_state: dict[Hashable, Callable[..., Any]] = {}
        self.seen: set[Hashable] = set()

    def clear(self) -> None:
        """Forget all of them."""
        self.by_state.clear()
        self.seen.clear()

    def run(self, state: Hashable, *args: Any, **kwargs: Any) -> Any:
        """What `forward` gives for these inputs; in memory that the next pass writes over.

        The first pass of its shapes is replayed at once: so the graph that copies inputs into the recording's is compiled
        then, and not at some later time. A pass may be repeated: into a cache it writes the same again.
        """
        if Recordings.under_way or not replayable((args, kwargs)):
            return self.forward(*args, **kwargs)
        state = (state, torch.is_autocast_enabled("hpu"), torch.get_autocast_dtype("hpu"))
        if state not in self.by_state:
            self.by_state[state] = self._recorded()
        shapes = (state, *map(_shape, tree_leaves((args, kwargs))))
        outputs = self._pass(state, args, kwargs)
        if shapes not in self.seen:
            self.seen.add(shapes)
            outputs = self._pass(state, args, kwargs)
        return outputs

    def _pass(self, state: Hashable, args: Any, kwargs: dict[str, Any]) -> Any:
        """Inputs are copied, since a recording takes its first ones for its own buffers. But for a cache: there each step
        goes on writing into what the one before has written.
        """
        from habana_frameworks.torch.core import mark_step

        args = tree_map(_copied, args)
        kwargs = {name: tree_map(_itself if name == CACHE else _copied, kwargs[name]) for name in kwargs}
        mark_step()  # else what led to the inputs would be one graph with copying them into the recording's
        Recordings.under_way = True
        try:
            # in lists of their own: `generate` puts other tensors into those of a cache
            return tree_map(_itself, self.by_state[state](*args, **kwargs))
        finally:
            Recordings.under_way = False

    def _recorded(self) -> Callable[..., Any]:
        from habana_frameworks.torch.hpu import wrap_in_hpu_graph

        holder = torch.nn.Module()  # the Gaudi software records modules, and one of them in one state only
        holder.forward = self.forward
        options = {"disable_tensor_cache": self.settings.disable_tensor_cache}
        wrapped: Any = wrap_in_hpu_graph(holder, max_graphs=self.settings.most, **options)
        return wrapped.forward


def replayable(inputs: Any) -> bool:
    """Whether inputs are tensors and plain values alone: an object's contents would be frozen into a recording."""
    if isinstance(inputs, dict):
        return all(map(replayable, inputs.values()))
    if isinstance(inputs, (list, tuple)):
        return all(map(replayable, inputs))
    return inputs is None or isinstance(inputs, (torch.Tensor, bool, int, float, str, torch.dtype))


def replay_passes(module: Any, state: Callable[[], Hashable], settings: HPUGraphSettings) -> None:
    """From now on `module`'s forward passes are recorded and replayed, of those kinds that `settings` name.

    `state()` tells apart what Python decides inside (adapters on or off). Outputs are copied: a recording gives the same
    tensors each time.
    """
    plain = module.forward
    trained = _trained_by_graphs(module, settings) if settings.training else plain
    first_state = state()
    recordings = Recordings(plain, settings)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            as_trained = module.training and replayable((args, kwargs)) and state() == first_state
            return (trained if as_trained else plain)(*args, **kwargs)
        if module.training or not settings.inference:
            return plain(*args, **kwargs)
        return tree_map(_copied, recordings.run((state(), _kinds(module)), *args, **kwargs))

    module.forward = forward


def _trained_by_graphs(module: Any, settings: HPUGraphSettings) -> Callable[..., Any]:
    """`module`'s forward, whose passes with gradients are recorded together with their backward passes.

    Intel's cacher gives the buffers of its graph for gradients, which the next backward pass writes over, while
    autograd keeps what it is given: so each parameter copies its gradient. And a second pass of the same shapes would
    write over what the backward pass of the first still needs: it runs without a graph.
    """
    from habana_frameworks.torch.hpu import ModuleCacher

    plain = module.forward
    ModuleCacher(max_graphs=settings.most or MOST_TRAINING_GRAPHS)(model=module, inplace=True)
    trained: Callable[..., Any] = module.forward
    module.forward = plain
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_hook(torch.clone)
    waiting: set[Hashable] = set()  # for their backward passes

    def forward(*args: Any, **kwargs: Any) -> Any:
        shapes = tuple(map(_shape, tree_leaves((args, kwargs))))
        if shapes in waiting:
            return plain(*args, **kwargs)
        outputs = trained(*args, **kwargs)
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                waiting.add(shapes)
                leaf.register_hook(lambda _gradient: waiting.discard(shapes))
                break
        return outputs

    return forward


@contextmanager
def replayed_generation(
    model: Any, state: Hashable, settings: HPUGraphSettings, *, one_state: bool = False
) -> Iterator[None]:
    """Inside, `model` as a whole runs from recordings, which are kept from one use to the next.

    `one_state`: those of other states are dropped, as their memory is gone.
    """
    instance = vars(model)
    before = instance.get("forward")
    recordings = instance.setdefault(_RECORDINGS, Recordings(model.forward, settings))
    key = (state, _kinds(model))
    if one_state and instance.get("generated_last") != key:
        recordings.clear()
    instance["generated_last"] = key
    model.forward = functools.wraps(recordings.forward)(functools.partial(recordings.run, key))
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def _kinds(module: Any) -> Hashable:
    """Types and devices of a module's weights: those that were converted lie elsewhere."""
    return frozenset((parameter.dtype, parameter.device) for parameter in module.parameters())


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def _itself(leaf: Any) -> Any:
    return leaf


def _shape(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
