"""What adapter directories hold, told from their files: on which weights they stand, and whether they can share them."""

from __future__ import annotations

import filecmp
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rlhf_hw.models.load import ADAPTER_CONFIG, adapter_base, is_adapter

ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: The score head of a reward model among an adapter's tensors.
SCORE = "base_model.model.score.weight"
_PREFIX = "base_model.model."
_MATRICES = (".lora_A.weight", ".lora_B.weight")
#: Starts of LoRA that leave the base's weights as they are; others (PiSSA, OLoRA, …) take something out of them.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: What of a configuration says nothing of the function that the weights make.
_NOT_THE_FUNCTION = frozenset(
    ["_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"]
)


@dataclass(frozen=True)
class Chain:
    """The weights that a model name stands for: a whole model, and the adapters on it, innermost first."""

    root: str
    adapters: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str) -> Chain:
        """Follow adapter directories down to the whole model."""
        adapters: list[str] = []
        while is_adapter(name):
            adapters.insert(0, name)
            name = adapter_base(name)
        return cls(name, tuple(adapters))


def not_plain_lora(directory: str) -> str | None:
    """Why the adapter in `directory` cannot act beside others on one base; None where it can."""
    config = json.loads((Path(directory) / ADAPTER_CONFIG).read_text())
    kind = config.get("peft_type")
    if kind != "LORA":
        return f"{directory} is a {kind} adapter, not LoRA"
    if config.get("bias", "none") != "none":
        return f"{directory} has biases of its own"
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        return f"{directory} began by changing the base (init_lora_weights {config['init_lora_weights']})"
    file = Path(directory) / ADAPTER_WEIGHTS
    if not file.is_file():
        return f"{directory} has no {ADAPTER_WEIGHTS}"
    with safe_open(file, framework="pt") as tensors:
        names = [name for name in tensors.keys() if name != SCORE]  # noqa: SIM118
    others = [name for name in names if not name.endswith(_MATRICES)]
    return f"{directory} also holds {others[0].removeprefix(_PREFIX)}" if others else None


def matrices_in(directory: str) -> int:
    """Numbers in the LoRA matrices of the adapter in `directory`, told without reading them."""
    with safe_open(Path(directory) / ADAPTER_WEIGHTS, framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.endswith(_MATRICES)]  # noqa: SIM118
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter directory in memory: PEFT's configuration, LoRA's tensors by their names in the file, the score head."""

    config: Any
    tensors: dict[str, torch.Tensor]
    score: torch.Tensor | None

    @classmethod
    def read(cls, directory: str) -> AdapterFiles:
        from peft import PeftConfig

        tensors = load_file(Path(directory) / ADAPTER_WEIGHTS)
        score = tensors.pop(SCORE, None)
        return cls(PeftConfig.from_pretrained(directory), tensors, score)

    def layers(self) -> list[str]:
        """Names of the layers that LoRA stands on."""
        return sorted({name.removeprefix(_PREFIX).split(".lora_")[0] for name in self.tensors})


def not_the_same_weights(one: str, other: str) -> str | None:
    """Why two names of whole models do not, or not provably, stand for the same weights; None where they do.

    Files are compared byte by byte: no dearer than loading the second model would be.
    """
    if one == other:
        return None
    first, second = Path(one), Path(other)
    if not (first.is_dir() and second.is_dir()):
        return f"{other} is not {one}"
    if first.resolve() == second.resolve():
        return None
    if _function(first) != _function(second):
        return f"{other} has another config.json than {one}"
    weights, others = (sorted(directory.glob("*.safetensors")) for directory in (first, second))
    same_names = [file.name for file in weights] == [file.name for file in others]
    if not weights or not same_names:
        return f"{other} has other weight files than {one}"
    for file, counterpart in zip(weights, others, strict=True):
        if not filecmp.cmp(file.resolve(), counterpart.resolve(), shallow=False):
            return f"{other} has other weights than {one} ({file.name})"
    return None


def _function(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text())
    return {name: value for name, value in config.items() if name not in _NOT_THE_FUNCTION}
