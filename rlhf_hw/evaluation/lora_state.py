"""LoRA weights that come as one state dict (`pytorch_model.bin`) and no PEFT directory.

Two spellings of the same two matrices are read: PEFT's (`….q_proj.lora_A.weight`, with or without an adapter's name) and
loralib's (`….q_proj.lora_A`), which AlpacaFarm with LoRA writes. W becomes W + (alpha / r) · B · A.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from rlhf_hw.errors import UserError

_LORA = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.[A-Za-z0-9_]+)??(?:\.weight)?$")
_PREFIXES = ("base_model.model.", "module.", "policy.base_model.")


def merge_lora_state(model: Any, path: str, *, rank: int | None, alpha: float, flag: str) -> int:
    """Merge the LoRA matrices in file `path` into `model`, in place. How many layers changed.

    Weights that the file holds whole under a name of the model's are copied, as they were trained too.

    Raises:
        UserError: the file is no state dict, a name does not fit the model, or `rank` is not the file's.
    """
    pairs, whole = _sorted_out(read_state(path, flag), model, path, flag)
    for layer, sides in pairs.items():
        if set(sides) != {"A", "B"}:
            raise UserError(
                f"{flag}: {path}: {layer} has lora_{next(iter(sides))} alone; the file is not complete"
            )
        _merge_layer(model, layer, sides["A"], sides["B"], rank, alpha, f"{flag}: {path}")
    parameters = dict(model.named_parameters())
    for name, tensor in whole.items():
        if parameters[name].shape != tensor.shape:
            raise UserError(
                f"{flag}: {path}: {name} is {list(tensor.shape)}, in the base model {list(parameters[name].shape)}; "
                "name the base it was trained on with --base_model_path"
            )
        with torch.no_grad():
            parameters[name].copy_(tensor)
    return len(pairs)


def read_state(path: str, flag: str) -> dict[str, torch.Tensor]:
    """The tensors in a torch file; nothing in it is executed.

    Raises:
        UserError: there is no such file, or it holds no state dict.
    """
    if not Path(path).is_file():
        raise UserError(f"{flag}: there is no file {path}; check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{flag}: {path} is no file of weights that torch can read safely; name the LoRA weights"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{flag}: {path} holds no tensors by their names; name the LoRA weights")
    return state


def _sorted_out(
    state: dict[str, torch.Tensor], model: Any, path: str, flag: str
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """(layer → its A and B, whole weights by name); every name must be one of the model's."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    strange = []
    for key, tensor in state.items():
        name = _without_prefixes(key)
        match = _LORA.match(name)
        if match and match["layer"] in modules:
            pairs.setdefault(match["layer"], {})[match["side"]] = tensor
        elif name in parameters:
            whole[name] = tensor
        else:
            strange.append(key)
    if strange or not pairs:
        what = (
            f"{strange[0]} and {len(strange) - 1} more"
            if len(strange) > 1
            else "".join(strange) or "no LoRA weights"
        )
        raise UserError(
            f"{flag}: {path} holds {what}, which do not fit {type(model).__name__}; expected LAYER.lora_A and LAYER.lora_B, "
            "or name a PEFT directory"
        )
    return pairs, whole


def _without_prefixes(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _merge_layer(
    model: Any, layer: str, a: torch.Tensor, b: torch.Tensor, rank: int | None, alpha: float, where: str
) -> None:
    module = model.get_submodule(layer)
    # GPT-2's layers hold their weight the other way round, as [in, out]
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    if a.dim() != 2 or b.shape[-1:] != a.shape[:1] or (b.shape[0], a.shape[1]) != tuple(weight.shape):
        raise UserError(
            f"{where}: {layer} has A {list(a.shape)} and B {list(b.shape)}, which do not fit a weight of "
            f"{list(weight.shape)}; name the base it was trained on with --base_model_path"
        )
    if rank is not None and rank != a.shape[0]:
        raise UserError(f"--lora_r: got {rank}, but {layer} in the file has rank {a.shape[0]}; give that")
    with torch.no_grad():
        update = (b.float() @ a.float()) * (alpha / a.shape[0])
        weight.copy_((weight.float() + update.to(weight.device)).to(weight.dtype))
