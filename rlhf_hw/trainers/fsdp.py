"""Sharing a model out among processes by PyTorch's `fully_shard` (FSDP2), and making it whole again for a while.

The trainer's accelerator then finds a model that is shared out already, and does the rest: clipping, saving, resuming.
It could share out by itself, but by rules that differ between its versions and that only know transformers' own
classes, not the actor-critic and the reward model around them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_hw.arguments.fsdp import FSDPPlan
from rlhf_hw.errors import UserError
from rlhf_hw.models.wrapping import without_adapters

#: by which transformers knows modules that FSDP shares out; PyTorch sets it on all of them
_MARK = "_is_fsdp_managed_module"
OPTIMIZER_DIRECTORY = "optimizer_fsdp"
#: what a checkpoint holds whose optimizer was saved in another way; the last is DeepSpeed's
_OTHERS_SAVE = ("optimizer.pt", "scheduler.pt", "latest")


def is_shared(model: nn.Module) -> bool:
    """Whether `share_out` was done with `model`."""
    return isinstance(model, FSDPModule)


def share_out(model: nn.Module, plan: FSDPPlan, device: torch.device) -> None:
    """Leave each process its share of every weight of `model`, on `device`. All processes must come here.

    The model keeps its class's name, its modules and the names of its weights; what lies in no unit is the root's.

    Raises:
        UserError: the model has no layer of a class that the plan names.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for unit in units_of(model, plan):
        _fully_shard(unit, mesh, plan.reshard_after_forward)
    # the root's weights would be gathered for the backward pass as soon as they were let go
    _fully_shard(model, mesh, False)
    # else the first module that runs takes itself for the root, and a rollout runs the policy alone
    model._get_fsdp_state()._lazy_init()


def units_of(model: nn.Module, plan: FSDPPlan) -> list[nn.Module]:
    """The modules of `model` that are gathered at once, inner ones first. None of them shares a weight with another."""
    if plan.units == "nothing":
        return []
    tied = _tied_weights(model)
    candidates = _layers(model, plan) if plan.units == "layers" else _large(model, plan.min_num_params)
    return [module for module in candidates if not tied & set(module.parameters())]


def _layers(model: nn.Module, plan: FSDPPlan) -> list[nn.Module]:
    wanted = set(plan.layer_classes)
    if not wanted:
        for inner in _transformers_models(model):
            wanted |= set(getattr(without_adapters(inner), "_no_split_modules", None) or ())
    found = [module for module in _inner_first(model) if type(module).__name__ in wanted]
    missing = set(plan.layer_classes) - {type(module).__name__ for module in found}
    if missing:
        lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
        classes = sorted({type(layer).__name__ for layers in lists for layer in layers})
        raise UserError(
            f"--fsdp_config transformer_layer_cls_to_wrap: the model has no {sorted(missing)[0]}; its layers are "
            f"{', '.join(classes)}"
        )
    return found


def _large(model: nn.Module, smallest: int) -> list[nn.Module]:
    """Modules with at least `smallest` weights beside those of other such modules inside them."""
    found: list[nn.Module] = []
    taken: set[nn.Parameter] = set()
    for module in _inner_first(model):
        own = set(module.parameters()) - taken
        if sum(weight.numel() for weight in own) >= smallest and not isinstance(
            module, (nn.ModuleList, nn.ModuleDict)
        ):
            found.append(module)
            taken |= own
    return found


def _inner_first(model: nn.Module) -> list[nn.Module]:
    """Every module but `model` itself, after all that it holds."""
    return list(reversed(list(model.modules())))[:-1]


def _transformers_models(model: nn.Module) -> list[nn.Module]:
    held = getattr(model, "checkpointed_models", None)
    return [model] if held is None else list(held())


def _tied_weights(model: nn.Module) -> set[nn.Parameter]:
    """Weights that stand under more than one name."""
    names = Counter(weight for _, weight in model.named_parameters(remove_duplicate=False))
    return {weight for weight, count in names.items() if count > 1}


def _fully_shard(module: nn.Module, mesh: Any, reshard_after_forward: bool) -> None:
    name = type(module).__name__
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    type(module).__name__ = name  # transformers 4 writes the class's name into config.json


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every weight of `model` whole on every process inside, to be read; its hooks, which would let them go, laid aside.

    Nor does `generate` then wait for the longest answer of all processes, as it does for modules with FSDP's mark.
    """
    marked = [module for module in model.modules() if getattr(module, _MARK, False)]
    shared = [module for module in model.modules() if isinstance(module, FSDPModule)]
    with ExitStack() as hooks:
        for module in shared:
            module.unshard()
            state = module._get_fsdp_state()
            for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
                hooks.enter_context(_laid_aside(handle))
        for module in marked:
            setattr(module, _MARK, False)
        try:
            yield
        finally:
            for module in marked:
                setattr(module, _MARK, True)
            for module in shared:
                module.reshard()


@contextmanager
def _laid_aside(handle: Any) -> Iterator[None]:
    table = handle.hooks_dict_ref()
    before = dict(table)
    del table[handle.id]
    try:
        yield
    finally:
        table.clear()
        table.update(before)


@contextmanager
def taking_whole_weights(model: nn.Module) -> Iterator[None]:
    """Inside, `load_state_dict` of `model` and of its parts takes whole weights, of which each process keeps its share."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after an evaluation the root's weights are still whole
    with ExitStack() as hooks:
        for module in model.modules():
            if any(isinstance(weight, DTensor) for weight in module.parameters(recurse=False)):
                handle = module.register_load_state_dict_pre_hook(_cut_up)
                hooks.callback(handle.remove)
        yield


def _cut_up(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, weight in module.named_parameters(recurse=False):
        whole = state.get(prefix + name)
        if isinstance(weight, DTensor) and whole is not None and not isinstance(whole, DTensor):
            whole = whole.to(device=weight.device, dtype=weight.dtype)
            state[prefix + name] = distribute_tensor(whole, weight.device_mesh, weight.placements)


def whole_state(model: nn.Module, *, kept: bool) -> dict[str, Any]:
    """The state dict of `model` with whole weights in the host's memory; empty where it is not `kept`.

    All processes must come here; they gather one weight at a time.
    """
    state = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if kept:
            state[name] = whole.cpu() if isinstance(whole, torch.Tensor) else whole
    return state


def save_optimizer(model: nn.Module, optimizer: Any, checkpoint: str | Path) -> None:
    """Let each process write its share of the optimizer's state."""
    state = get_optimizer_state_dict(model, _innermost(optimizer))
    distributed_checkpoint.save(state, checkpoint_id=Path(checkpoint) / OPTIMIZER_DIRECTORY)


def load_optimizer(model: nn.Module, optimizer: Any, checkpoint: str | Path) -> bool:
    """Read back what `save_optimizer` wrote, with any number of processes; False where only the model was saved.

    Raises:
        UserError: `checkpoint` is not one of FSDP.
    """
    directory = Path(checkpoint) / OPTIMIZER_DIRECTORY
    if not directory.is_dir():
        if not any((Path(checkpoint) / name).exists() for name in _OTHERS_SAVE):
            return False  # --save_only_model
        raise UserError(
            f"--resume_from_checkpoint: {checkpoint} was not written with --fsdp; resume as its run was started"
        )
    state = get_optimizer_state_dict(model, _innermost(optimizer))
    distributed_checkpoint.load(state, checkpoint_id=directory)
    set_optimizer_state_dict(model, _innermost(optimizer), state)
    return True


def _innermost(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # inside accelerate's


def autocast(plan: FSDPPlan, device: torch.device, *, training: bool) -> Any:
    """The precision that operations run in. In `training` no cast weight is kept for a second use: it would stay whole."""
    if plan.autocast == "no":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=not training)
