"""Working with a model whose weights DeepSpeed or FSDP shares out, past its wrapper's own forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from rlhf_hw.arguments.fsdp import FSDPPlan
from rlhf_hw.models.wrapping import unwrap
from rlhf_hw.trainers import fsdp


def leave_models_whole() -> None:
    """Let `from_pretrained` load models whole, into the host's memory; DeepSpeed shares one out when its training begins.

    Once there are training arguments with ZeRO-3, transformers shares out every model that is made, also those that are
    not trained, which nobody gathers again; and `generate` makes every process wait for the longest answer of all.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def deepspeed_settings(trainer: Any) -> dict[str, Any]:
    """The DeepSpeed configuration that a trainer runs under; empty without DeepSpeed."""
    if not trainer.is_deepspeed_enabled:
        return {}
    return dict(trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config)


def zero_stage_of(trainer: Any) -> int:
    """The ZeRO stage that a trainer runs under; 0 without DeepSpeed too."""
    return int(deepspeed_settings(trainer).get("zero_optimization", {}).get("stage", 0))


def fsdp_plan(trainer: Any) -> FSDPPlan:
    """How FSDP shares out the model of a trainer that runs under it."""
    return FSDPPlan.from_config(trainer.args.fsdp_config)


def sharded_autocast(trainer: Any, *, training: bool = False) -> Any:
    """The context in which DeepSpeed's engine runs a forward pass, for those that go past it; under FSDP, of all."""
    if trainer.is_fsdp_enabled:
        return fsdp.autocast(fsdp_plan(trainer), trainer.args.device, training=training)
    settings = deepspeed_settings(trainer).get("torch_autocast", {})
    if not settings.get("enabled"):
        return nullcontext()
    dtype = getattr(torch, str(settings.get("dtype", "bfloat16")).removeprefix("torch."))
    return torch.autocast(trainer.args.device.type, dtype=dtype)


@contextmanager
def whole_weights(trainer: Any) -> Iterator[Any]:
    """The trained model without its wrapper; inside, every process holds all of its weights.

    They are gathered once, on the way in, and not changed. Inside, no process waits for another, so each may generate
    as long as it likes; but all processes must come here equally often. Where weights are not shared out, nothing is done.
    """
    model = unwrap(trainer.model)
    offload = _zero3_hooks(trainer)
    if fsdp.is_shared(model):
        with fsdp.gathered(model):
            yield model
    elif offload is not None:
        with _gathered_by_zero3(model, offload):
            yield model
    else:
        yield model


def _zero3_hooks(trainer: Any) -> Any:
    """What gathers and shares out weights around each module under ZeRO-3; None without it or before training."""
    optimizer = getattr(getattr(trainer, "deepspeed", None), "optimizer", None)
    return getattr(optimizer, "parameter_offload", None)


@contextmanager
def _gathered_by_zero3(model: Any, offload: Any) -> Iterator[None]:
    """All weights gathered, and the hooks laid aside that would share each module's out again after its forward pass."""
    import deepspeed

    tables: dict[int, tuple[Any, dict[int, Any]]] = {}
    for handle in (*offload.forward_hooks, *offload.backward_hooks):
        table = handle.hooks_dict_ref()
        if table is not None:
            tables.setdefault(id(table), (table, dict(table)))
            del table[handle.id]
    try:
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            yield
    finally:
        for table, hooks in tables.values():
            table.clear()
            table.update(hooks)
