"""What lives at the worst moment of a pass, for models of any depth, from passes through a few layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rlhf_hw.estimate.fakes import decoder_layers, materialise
from rlhf_hw.estimate.live_bytes import FROZEN, GRADIENTS, TRAINED, Bytes, LiveBytes

#: layers that are run in place of many: two at the front, of which the first may keep less, and one at the back
FEW, FRONT = 3, 2

#: layers of each role → its peaks by stretch
Run = Callable[[Mapping[str, int]], Mapping[Any, Bytes]]


@contextmanager
def counted(models: Mapping[str, nn.Module], vocabulary: int) -> Iterator[LiveBytes]:
    """Inside, `models` (role → model on the meta device) are fake, and what lives is counted by stretches of layers."""
    with FakeTensorMode(), LiveBytes(vocabulary) as live:
        for role, model in models.items():
            materialise(model)
            weights = list(model.parameters())
            live.count_as(TRAINED, [weight for weight in weights if weight.requires_grad])
            live.count_as(FROZEN, [weight for weight in weights if not weight.requires_grad])
            for weight in weights:
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(lambda p: live.count_as(GRADIENTS, [p.grad]))
            _mark_layers(live, role, decoder_layers(model))
        live.restart()
        yield live


def _mark_layers(live: LiveBytes, role: str, layers: nn.ModuleList) -> None:
    """Begin a new stretch at every layer, in the forward pass and in the backward pass."""
    for index, layer in enumerate(layers):
        place = ("front", index) if index < FRONT else ("back", len(layers) - 1 - index)

        def enters(_layer: Any, args: Any, kwargs: Any, place: Any = place) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            live.entries += place == ("front", 0)
            passes = live.entries
            live.mark((passes, role, "enters", place))
            if hidden.requires_grad:
                hidden.register_hook(lambda _: live.mark((passes, role, "leaves", place)))

        layer.register_forward_pre_hook(enters, with_kwargs=True)


def peaks(run: Run, layers: Mapping[str, int], alike: bool) -> list[Bytes]:
    """The peaks of all stretches of `run`, were the models as deep as `layers` says.

    Within a stretch what lives is affine in each model's number of layers: it holds so much of every layer passed, and of
    every layer to come. So a run through few layers, and one through one layer more, tell of any number;
    and as it changes evenly from layer to layer, the worst moment is at one of the ends, which are among the few.
    """
    if not alike:
        return list(run(layers).values())
    few = {role: min(count, FEW) for role, count in layers.items()}
    base = run(few)
    found = {stretch: Counter(there) for stretch, there in base.items()}
    for count in sorted(set(layers.values())):  # models of one depth grow together
        if count <= FEW:
            continue
        deeper = run({role: FEW + 1 if layers[role] == count else few[role] for role in layers})
        for stretch, there in base.items():
            for kind in {*there, *deeper[stretch]}:
                found[stretch][kind] += (count - FEW) * (deeper[stretch][kind] - there[kind])
    return list(found.values())


def ones(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A fake tensor of this shape."""
    return torch.ones(shape, dtype=dtype)
