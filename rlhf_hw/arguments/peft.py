"""The flags that say what is trained: an adapter of which kind, or everything."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg


@dataclass(kw_only=True)
class PeftArguments:
    """Parameter-efficient training. After parsing, `peft` is None when every weight is trained."""

    _argument_group_name = "What is trained"

    peft: Literal["lora", "llama_adapter", "ptun", "prefix", "prompt", "none"] | None = HfArg(
        default="lora",
        help="The kind of adapter to train on the frozen model; none trains every weight (as --full_finetune).",
    )
    full_finetune: bool = HfArg(default=False, help="Train every weight; no adapter.")
    lora_rank: int = HfArg(default=8, aliases=["--lora_r"], help="Rank of LoRA's two matrices.")
    lora_alpha: int = HfArg(default=16, help="LoRA's update is scaled by lora_alpha / lora_rank.")
    lora_dropout: float = HfArg(default=0.05, help="Dropout before LoRA's first matrix, from 0 to below 1.")
    lora_target_modules: list[str] | None = HfArg(
        default=None,
        help="Names of the layers that get LoRA, separated by spaces or commas; a name with * stands for every "
        "linear layer it fits (*layers.*, *_proj). Not said: PEFT's table for the architecture. Unlike in the originals of the reward and PPO scripts, this acts.",
    )
    lora_all_linear: bool = HfArg(
        default=False,
        help="LoRA on every linear layer but the output head; --lora_target_modules beats it.",
    )
    adapter_layers: int = HfArg(default=30, help="llama_adapter: how many of the last layers get prompts.")
    adapter_len: int = HfArg(default=10, help="llama_adapter: prompt length in tokens.")
    num_virtual_tokens: int = HfArg(default=10, help="ptun, prefix, prompt: virtual tokens put in front.")
    ptun_hidden_size: int = HfArg(default=1024, help="ptun: width of the prompt encoder.")

    def __post_init__(self) -> None:
        if self.full_finetune or self.peft == "none":
            self.peft = None
        if self.lora_target_modules is not None:
            names = [name.strip() for word in self.lora_target_modules for name in word.split(",")]
            self.lora_target_modules = [name for name in names if name] or None
            self.lora_all_linear = self.lora_all_linear and self.lora_target_modules is None
