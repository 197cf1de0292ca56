"""Loading models and tokenizers: hub names, local directories, and PEFT adapter directories alike."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from rlhf_hw.compat.dtype_argument import dtype_argument
from rlhf_hw.errors import UserError
from rlhf_hw.models.reward_model import RewardModel

ADAPTER_CONFIG = "adapter_config.json"
#: What tokenizers are saved as: tokenizer.json, tokenizer.model, tokenizer_config.json; vocab.json or .txt; spiece.model.
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model")
#: Adapters that can become part of a model's weights.
MERGEABLE = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA")


@dataclass(frozen=True)
class LoadOptions:
    """How to load, whatever the model. `flag` is the flag that named it, for error messages."""

    flag: str = "--model_name_or_path"
    revision: str = "main"
    cache_dir: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    trust_remote_code: bool = False
    dtype: torch.dtype | str = torch.float32  #: "auto": as saved
    attention: str = "sdpa"
    config_name: str | None = None  #: where the configuration comes from, if not from the model itself
    quantization: Any = None
    device_map: Any = None

    def hub(self) -> dict[str, Any]:
        """The options that concern where files come from."""
        return {
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    def weights(self) -> dict[str, Any]:
        """The options that concern the weights too."""
        options = {**self.hub(), **dtype_argument(self.dtype), "attn_implementation": self.attention}
        if self.quantization is not None:
            options |= {"quantization_config": self.quantization, "device_map": self.device_map}
        return options

    def configuration(self, **changes: Any) -> dict[str, Any]:
        """The options that make the model's configuration, with `changes` to it."""
        if self.config_name is None:
            return changes
        from transformers import AutoConfig

        with _explained(self.config_name, "--config_name"):
            return {"config": AutoConfig.from_pretrained(self.config_name, **self.hub(), **changes)}


def check_model_path(name: str, flag: str) -> None:
    """Raise before anything loads if `name` looks like a local path but holds no model, or an adapter without base."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / ADAPTER_CONFIG).is_file():
            raise UserError(
                f"{flag}: {name} is a directory without config.json or {ADAPTER_CONFIG}; name a directory that "
                "save_pretrained wrote"
            )
        if is_adapter(name):
            base = adapter_base(name)
            if _looks_local(base) and not Path(base).is_dir():
                raise UserError(
                    f"{flag}: {name} is an adapter on {base}, and there is no such directory; run where there is, or "
                    "merge it with rlhf-hw merge --base_model_name"
                )
            check_model_path(base, flag)
    elif _looks_local(name):
        raise UserError(f"{flag}: there is no directory {name}; check the path")


def check_tokenizer_path(name: str, flag: str) -> None:
    """Raise before anything loads if `name` looks like a local path but holds no tokenizer; a model need not be there."""
    path = Path(name)
    if path.is_dir():
        if not any(next(path.glob(pattern), None) for pattern in _TOKENIZER_FILES):
            raise UserError(
                f"{flag}: {name} is a directory without a tokenizer (tokenizer.json, or a vocabulary and "
                "tokenizer_config.json); name one that its save_pretrained wrote"
            )
    elif _looks_local(name):
        raise UserError(f"{flag}: there is no directory {name}; check the path")


def _looks_local(name: str) -> bool:
    """Whether a name can only be a path: no hub name begins so, or has more than one slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


@contextlib.contextmanager
def _explained(name: str, flag: str) -> Iterator[None]:
    """Turn transformers' long loading errors into one line that names the flag."""
    try:
        yield
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{flag}: cannot load {name!r} as a local directory or from the hub: {first}"
        ) from error


@contextlib.contextmanager
def _quiet_about_the_head() -> Iterator[None]:
    """A causal model has no score head: that it is made anew is what is meant to happen, and no news."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def is_adapter(name: str) -> bool:
    """Whether `name` is a local directory with a PEFT adapter."""
    return (Path(name) / ADAPTER_CONFIG).is_file()


def adapter_base(name: str) -> str:
    """Name or path of the base model that the adapter in directory `name` was trained on.

    A relative path is one from where training ran, as PEFT writes it. Where it leads nowhere from here, it is tried from
    the folders above the adapter: training mostly ran in one of them.

    Raises:
        UserError: the adapter names itself as its base, or an adapter on itself.
    """
    base = further = _named_base(name)
    seen = {Path(name).resolve()}
    while is_adapter(further):
        if Path(further).resolve() in seen:
            raise UserError(
                f"{name}: its {ADAPTER_CONFIG} names itself as its base{'' if further == base else ', by way of others'}; "
                "write the model that it was trained on into base_model_name_or_path"
            )
        seen.add(Path(further).resolve())
        further = _named_base(further)
    return base


def _named_base(name: str) -> str:
    base: str = json.loads((Path(name) / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    if not Path(base).is_dir():
        for folder in Path(name).resolve().parents:
            if (folder / base / "config.json").is_file() or is_adapter(str(folder / base)):
                return str(folder / base)
    return base


def load_tokenizer(name: str, options: LoadOptions, *, use_fast: bool = True) -> Any:
    """Load a tokenizer and make sure that it has a pad token, if possible one that is not EOS.

    Padding is always told by the attention mask here; a pad token apart from EOS is for those who read the
    model later with plain transformers, which tells padding by the id.
    """
    from transformers import AutoTokenizer

    with _explained(name, options.flag):
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=use_fast, **options.hub())
    if tokenizer.eos_token_id is None:
        raise UserError(f"{options.flag}: the tokenizer of {name} has no EOS token; answers could never end")
    if tokenizer.pad_token_id is None:
        unknown = tokenizer.unk_token
        tokenizer.pad_token = unknown if unknown not in (None, tokenizer.eos_token) else tokenizer.eos_token
    return tokenizer


def load_policy(name: str, options: LoadOptions) -> Any:
    """Load a causal language model. An adapter directory is loaded onto its base and merged into it."""
    from transformers import AutoModelForCausalLM

    if is_adapter(name):
        return with_adapter_merged(load_policy(adapter_base(name), options), name, options.flag)
    with _explained(name, options.flag):
        return AutoModelForCausalLM.from_pretrained(name, **options.configuration(), **options.weights())


def load_sequence_classifier(name: str, options: LoadOptions, pad_token_id: int) -> Any:
    """Load a model with one label. A causal model's backbone gets a fresh, small score head.

    An adapter directory is loaded onto its base and merged: that of a reward model with its head, that of a causal
    model (the adapter of supervised fine-tuning) for its backbone.
    """
    from transformers import AutoModelForSequenceClassification

    if is_adapter(name):
        model = load_sequence_classifier(adapter_base(name), options, pad_token_id)
        return with_adapter_merged(model, name, options.flag)
    with _explained(name, options.flag), _quiet_about_the_head():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, output_loading_info=True, **options.configuration(num_labels=1), **options.weights()
        )
    model.config.pad_token_id = pad_token_id
    if any("score" in key for key in info["missing_keys"]):
        with torch.no_grad():
            model.score.weight.copy_(fresh_score(*model.score.weight.shape))
    if isinstance(getattr(model, "score", None), nn.Linear) and options.quantization is None:
        model.score.to(torch.float32)
        _restore_head(model.score, Path(name))
    return model


def fresh_score(labels: int, width: int) -> torch.Tensor:
    """A small random score head [labels, H]."""
    # 1/sqrt(H+1): OpenAI's initial reward head (Huang et al. 2024, arXiv 2403.17031, detail 12.1)
    return torch.randn(labels, width) / (width + 1) ** 0.5


def _restore_head(head: nn.Linear, directory: Path) -> None:
    """Take the score head from the file again: loading with the rest in bf16 has rounded it."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "score.weight" in tensors.keys():  # noqa: SIM118
                with torch.no_grad():
                    head.weight.copy_(tensors.get_tensor("score.weight"))


def load_reward_model(name: str, options: LoadOptions, pad_token_id: int) -> RewardModel:
    """Load a trained reward model (whole, or adapter on base) for scoring.

    Raises:
        UserError: the directory holds no score head: it is not a reward model.
    """
    check_reward_model(name, options.flag)
    return RewardModel(load_sequence_classifier(name, options, pad_token_id))


def check_reward_model(name: str, flag: str) -> None:
    """Raise before anything loads if directory `name` holds no score head."""
    if Path(name).is_dir() and not _has_score_head(Path(name)):
        raise UserError(
            f"{flag}: {name} has no score head; name the output directory of the reward-model stage"
        )


def _has_score_head(directory: Path) -> bool:
    config = directory / ADAPTER_CONFIG
    if config.is_file():
        return json.loads(config.read_text()).get("task_type") == "SEQ_CLS"
    architectures = json.loads((directory / "config.json").read_text()).get("architectures") or []
    return any("SequenceClassification" in name for name in architectures)


def with_adapter_merged(model: Any, directory: str, flag: str) -> Any:
    """`model` with the adapter in `directory` merged into its weights, of which those train that did before."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(directory)
    if config.peft_type not in MERGEABLE:
        raise UserError(
            f"{flag}: {directory} is a {config.peft_type.value} adapter, which cannot become part of a model's weights; "
            "name a whole model or a LoRA adapter"
        )
    if config.task_type == "SEQ_CLS" and not hasattr(model, "score"):
        raise UserError(f"{flag}: {directory} is a reward model's adapter; name a language model")
    config.task_type = (
        None  # PEFT's causal class refuses a classifier, whose backbone the adapter fits all the same
    )
    rows = _saved_embedding_rows(Path(directory))
    if rows is not None and rows != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows)
    trained = {name for name, weight in _weights(model) if weight.requires_grad}  # none of the quantized
    merged = PeftModel.from_pretrained(model, directory, config=config).merge_and_unload()
    for weight_name, weight in _weights(merged):
        weight.requires_grad_(weight_name in trained)  # PEFT has frozen them all
    if hasattr(
        merged, "peft_config"
    ):  # PEFT below 0.18 leaves it, and then takes the next adapter for a second one
        del merged.peft_config
    # an adapter trained on top of this one must name it as its base
    merged.name_or_path = merged.config._name_or_path = directory
    return merged


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by every name they go by: merging may untie the embeddings."""
    return model.named_parameters(remove_duplicate=False)


#: Input embeddings as Llama, Qwen and OPT, GPT-2, GPT-NeoX, and Bloom and Falcon name them.
_EMBEDDINGS = (".embed_tokens.weight", ".wte.weight", ".embed_in.weight", ".word_embeddings.weight")


def _saved_embedding_rows(directory: Path) -> int | None:
    """Size of the vocabulary that an adapter was saved with; None where it left the embeddings as they were."""
    file = directory / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.endswith(_EMBEDDINGS)]  # noqa: SIM118
        return tensors.get_slice(names[0]).get_shape()[0] if names else None
