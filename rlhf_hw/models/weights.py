"""Writing and reading the weights of a model in training: to the bit, adapter or whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_hw.models.wrapping import is_peft, without_adapters

PROMPT_ENCODER_FILE = "prompt_encoder.safetensors"


def save_weights(
    model: Any, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a plain transformers or PEFT directory, and beside it what PEFT leaves out and training goes on from.

    P-tuning trains an encoder; PEFT keeps of it the virtual tokens that it makes.
    """
    alone = {"selected_adapters": [model.active_adapter]} if is_peft(model) else {}
    model.save_pretrained(directory, state_dict=state_dict, **alone)
    if is_peft(model) and model.active_peft_config.peft_type == "P_TUNING":
        save_file(model.prompt_encoder.state_dict(), Path(directory) / PROMPT_ENCODER_FILE)


def load_weights_into(model: nn.Module, directory: str | Path) -> None:
    """Load into `model`, bit for bit, what `save_weights` wrote (adapter, whole, sharded or not)."""
    directory = Path(directory)
    if (directory / PROMPT_ENCODER_FILE).is_file():
        model.get_submodule("prompt_encoder").load_state_dict(load_file(directory / PROMPT_ENCODER_FILE))
        return
    if is_peft(model):
        from peft import set_peft_model_state_dict
        from peft.utils import load_peft_weights

        set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
        return
    index = directory / "model.safetensors.index.json"
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.is_file()
        else ["model.safetensors"]
    )
    state = {key: tensor for name in names for key, tensor in load_file(directory / name).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(getattr(without_adapters(model), "_tied_weights_keys", None) or ())
    lost = [key for key in missing if key not in tied]
    if lost or unexpected:
        raise RuntimeError(
            f"{directory}: weights do not fit the model (missing {lost}, unexpected {unexpected})"
        )
    without_adapters(model).tie_weights()
