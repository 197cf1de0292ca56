"""The configuration of a model that is only asked about: from a known name, a directory, the hub, or `--sizes`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rlhf_hw.errors import UserError
from rlhf_hw.estimate.known_models import known
from rlhf_hw.models.load import LoadOptions, adapter_base, check_model_path, is_adapter

#: `--sizes` → a Llama's configuration
_SIZES = {
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocab": "vocab_size",
}
_REQUIRED = ("hidden", "layers", "heads", "vocab")


def model_config(name: str, options: LoadOptions) -> Any:
    """The transformers configuration of `name`; of an adapter directory, that of its base.

    Raises:
        UserError: there is no such model.
    """
    from transformers import AutoConfig

    if is_adapter(name):
        check_model_path(name, options.flag)
        return model_config(adapter_base(name), options)
    sizes = None if Path(name).is_dir() else known(name)
    if sizes is not None:
        return AutoConfig.for_model(**sizes)
    check_model_path(name, options.flag)
    try:
        return AutoConfig.from_pretrained(name, **options.hub())
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{options.flag}: no configuration of {name!r}: {first}; name a directory with config.json, a model that is "
            "known (rlhf-hw estimate --help), or give --sizes"
        ) from error


def config_of_sizes(text: str) -> Any:
    """A Llama of the sizes in `--sizes`, such as hidden=4096,layers=32,heads=32,vocab=32000.

    Raises:
        UserError: they cannot be read, or make no model.
    """
    from transformers import LlamaConfig

    found: dict[str, int] = {}
    for part in filter(None, text.replace(" ", ",").split(",")):
        name, _, value = part.partition("=")
        if name not in _SIZES or not (value.isascii() and value.isdecimal()) or int(value) < 1:
            raise UserError(f"--sizes: got {part!r}, expected NAME=NUMBER with the names {', '.join(_SIZES)}")
        found[name] = int(value)
    missing = [name for name in _REQUIRED if name not in found]
    if missing:
        raise UserError(
            f"--sizes: {', '.join(missing)} missing; give hidden, layers, heads and vocab at least"
        )
    if found["hidden"] % found["heads"] or found["heads"] % found.get("kv_heads", found["heads"]):
        raise UserError("--sizes: heads must divide hidden, and kv_heads must divide heads")
    if found["hidden"] // found["heads"] % 2:
        raise UserError(
            f"--sizes: a head of width {found['hidden'] // found['heads']} (hidden / heads) cannot be rotated; make it even"
        )
    found.setdefault("intermediate", -(-found["hidden"] * 8 // 3 // 256) * 256)  # as Llama's own rule has it
    return LlamaConfig(**{_SIZES[name]: value for name, value in found.items()})


def with_layers(config: Any, layers: int) -> Any:
    """`config` with so many layers."""
    shorter = copy.deepcopy(config)
    shorter.num_hidden_layers = layers
    if getattr(shorter, "layer_types", None):
        shorter.layer_types = list(config.layer_types)[:layers]
    return shorter


def are_layers_alike(config: Any) -> bool:
    """Whether all layers have the same sizes and kind, so that few of them tell of many."""
    return len(set(getattr(config, "layer_types", None) or ["one"])) == 1
