"""Getting at the model inside the wrappers that training puts around it."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

#: (library, class) whose instances hold a model as `module`
_WRAPPERS = (
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.nn.parallel", "DataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("deepspeed", "DeepSpeedEngine"),
)


def unwrap(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel, DeepSpeed, FSDP and torch.compile; PEFT stays.

    Asked several times in every step: a library that nobody imported wraps nothing, and is not looked for on the disk (as
    accelerate's function of this purpose does each time).
    """
    known = tuple(getattr(sys.modules[name], kind) for name, kind in _WRAPPERS if name in sys.modules)
    while True:
        if "_orig_mod" in model._modules:  # torch.compile's
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, known):
            model = model.module
        else:
            return model


def without_adapters(model: nn.Module) -> Any:
    """The transformers model inside PEFT (LoRA layers stay in place inside it), or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_peft(model: nn.Module) -> bool:
    """Whether the model carries PEFT adapters."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def is_lora(model: nn.Module) -> bool:
    """Whether the model carries LoRA adapters."""
    return is_peft(model) and all(config.peft_type == "LORA" for config in model.peft_config.values())


def trunk(model: nn.Module) -> Any:
    """The decoder of a causal language model or a classifier, without its head."""
    base = without_adapters(unwrap(model)).base_model
    return getattr(base, "decoder", base)  # OPT's causal model calls its decoder past the model around it


def lora_layers(model: nn.Module) -> list[Any]:
    """The layers that PEFT has put adapters on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def adapter_state(model: nn.Module) -> Hashable:
    """Tells apart the states of a model's adapters in which its forward pass is another: on, off, merged, which ones."""
    inner = unwrap(model)
    if not is_peft(inner):
        return None
    layers = lora_layers(inner)
    states = [(tuple(x.active_adapters), x.disable_adapters, tuple(x.merged_adapters)) for x in layers]
    return (getattr(inner.base_model, "_enabled", None), *states)  # LLaMA-Adapter takes its modules out


#: whose forward passes are known here; accelerate's call those they replace, Liger's norms and MLPs mix no tokens
_LIBRARIES = frozenset({"torch", "transformers", "peft", "accelerate", "liger_kernel", "rlhf_hw"})


def foreign_module(model: nn.Module) -> str | None:
    """The class of a module inside `model` whose forward pass someone else wrote, or put there; None where none is.

    A linear layer may be anyone's (one with quantised weights is): it mixes no tokens.
    """
    for module in model.modules():
        source = getattr(module.forward, "__module__", None) or ""
        if source.split(".")[0] not in _LIBRARIES and not isinstance(module, nn.Linear):
            return type(module).__name__
    return None


@contextmanager
def attending_by(config: Any, name: str) -> Iterator[None]:
    """Inside, the model of this `config` attends by the function that transformers knows as `name`."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def part_of_state(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries of a state dict below `prefix`, by their names there."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def virtual_tokens(model: nn.Module) -> int:
    """How many virtual tokens the model's adapter (prompt tuning and its like) puts before every row; mostly 0."""
    return getattr(unwrap(model).active_peft_config, "num_virtual_tokens", 0) if is_peft(unwrap(model)) else 0


@contextmanager
def lent_to(device: torch.device, model: nn.Module | None, *, offloaded: bool) -> Iterator[None]:
    """`model` on `device` inside, and, if it is `offloaded`, in the host's memory afterwards."""
    if model is not None:
        model.to(device)
    try:
        yield
    finally:
        if model is not None and offloaded:
            model.to("cpu")


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode inside; nothing is done where it is already."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def remove_dropout(model: nn.Module) -> None:
    """Set every dropout probability to zero, in place.

    In PPO the log-probabilities of one and the same policy must agree between rollout, scoring and update: with
    dropout the first ratio is not 1 (Huang et al. 2024, arXiv 2403.17031, detail 7).
    """
    set_dropout(model, 0.0)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout probability, in place. Whole layers are dropped as before, unless `probability` is zero."""
    part = "dropout" if probability else "drop"
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            # attention and MLP modules of transformers keep some as plain numbers: attention_dropout, layerdrop, …
            if part in name and isinstance(value, float):
                setattr(module, name, probability)
