"""Which classes a model's modules are of, known without its weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from rlhf_hw.errors import UserError
from rlhf_hw.models.adapter_files import Chain
from rlhf_hw.models.load import LoadOptions


def check_layer_classes(wanted: Iterable[str], models: Iterable[tuple[str, LoadOptions]]) -> None:
    """Refuse a class of layers that none of `models` has. Their configurations are read; their weights are not.

    Where a configuration cannot be read, or makes no model that generates, nothing is refused: loading says more of it.

    Raises:
        UserError: there is no such class.
    """
    modules: list[nn.Module] = []
    for name, options in models:
        model = _without_weights(name, options)
        if model is None:
            return
        modules += model.modules()
    missing = sorted(set(wanted) - {type(module).__name__ for module in modules})
    if missing:
        lists = (module for module in modules if isinstance(module, nn.ModuleList))
        layers = sorted({type(layer).__name__ for found in lists for layer in found})
        raise UserError(
            f"--fsdp_config transformer_layer_cls_to_wrap: the model has no {missing[0]}; its layers are {', '.join(layers)}"
        )


def _without_weights(name: str, options: LoadOptions) -> nn.Module | None:
    from transformers import AutoConfig, AutoModelForCausalLM

    root = options.config_name or Chain.of(name).root
    try:
        config = AutoConfig.from_pretrained(root, **options.hub())
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=options.trust_remote_code
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError):
        return None
    return model
