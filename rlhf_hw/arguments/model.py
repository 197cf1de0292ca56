"""The flags that say which model, from where, in which arithmetic."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers.hf_argparser import HfArg

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal[
    "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "gaudi_fused_sdpa"
]


@dataclass(kw_only=True)
class HubAccess:
    """How to reach models and data sets on a hub. The two credentials are shown nowhere."""

    _argument_group_name = "Access to the hub"

    token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "aliases": ["--hf_access_token"],
            "help": "Access token for private or gated models and data sets. It is written nowhere; the HF_TOKEN "
            "variable or a stored login does as well and stays out of the process list.",
        },
    )
    use_auth_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "nargs": "?",
            "const": "true",
            "metavar": "[BOOL|TEXT]",
            "help": "True: use the stored login (which happens anyway where one exists). A text is taken as the token "
            "itself.",
        },
    )
    trust_remote_code: bool = HfArg(
        default=False, help="Run model code that comes with the model. Only for sources you trust."
    )

    def hub_token(self) -> str | bool | None:
        """What `from_pretrained(token=…)` takes: a token, True for the stored login, None for whatever is there."""
        if self.token is not None:
            return self.token
        word = (self.use_auth_token or "false").lower()
        if word in ("true", "t", "yes", "y", "1"):
            return True
        return None if word in ("false", "f", "no", "n", "0") else self.use_auth_token

    def secret_values(self) -> tuple[str, ...]:
        """Every text given here that must not be written anywhere."""
        token = self.hub_token()
        given = (self.token, token if isinstance(token, str) else None)
        return tuple(dict.fromkeys(value for value in given if value))


@dataclass(kw_only=True)
class ModelArguments(HubAccess):
    """The model that a stage trains, and its tokenizer."""

    _argument_group_name = "Model"

    model_name_or_path: str = HfArg(
        aliases=["--model_name"],
        help="The model to train: a hub name or a local directory, of a whole model or of an adapter. Required.",
    )
    config_name: str | None = HfArg(
        default=None,
        help="Take the configuration of the model to train from here (a directory or hub name) instead of from the model.",
    )
    tokenizer_name: str | None = HfArg(
        default=None,
        aliases=["--tokenizer_name_or_path"],
        help="Take the tokenizer from here instead of from the model.",
    )
    cache_dir: str | None = HfArg(default=None, help="Directory for downloaded models.")
    model_revision: str = HfArg(default="main", help="Branch, tag or commit of the model on the hub.")
    use_fast_tokenizer: bool = HfArg(
        default=True,
        help="Use the Rust tokenizer. transformers 5 has no other for most models and then ignores False.",
    )
    torch_dtype: Dtype = HfArg(
        default="auto",
        aliases=["--dtype"],
        help="Precision in which frozen weights are held. auto: what the hardware does best. Weights that are trained "
        "stay in float32 whatever is said here.",
    )
    attn_implementation: Attention = HfArg(
        default="auto", help="Attention kernel. auto: the backend's choice, named in the log with its reason."
    )
    dropout: float | None = HfArg(
        default=None,
        help="Dropout probability of the model that trains. Not said: the model's own. PPO has none in any case.",
    )
    load_in_4bit: bool = HfArg(
        default=False, help="Load frozen weights in 4 bits (bitsandbytes; CUDA and CPU)."
    )
    load_in_8bit: bool = HfArg(
        default=False, help="Load frozen weights in 8 bits (bitsandbytes; CUDA and CPU)."
    )
    qlora: bool = HfArg(
        default=False,
        help="LoRA on a base model held in --bits bits (bitsandbytes; CUDA and CPU); needs --peft lora.",
    )
    bits: Literal[4, 8] = HfArg(default=4, help="Bits a weight of the base model, with --qlora.")
    double_quant: bool = HfArg(default=True, help="Quantize the 4-bit quantization constants too.")
    quant_type: Literal["nf4", "fp4"] = HfArg(default="nf4", help="The 4-bit number format.")

    def quantization_bits(self) -> int | None:
        """4 or 8 where the base model is to be quantized, else None."""
        if self.load_in_4bit:
            return 4
        if self.load_in_8bit:
            return 8
        return self.bits if self.qlora else None
