"""Putting PEFT adapters on a model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from rlhf_hw.arguments.peft import PeftArguments


def adapter_config(
    kind: str,
    *,
    task_type: str,
    rank: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str] | None,
    all_linear: bool,
    num_virtual_tokens: int,
    ptun_hidden_size: int,
    adapter_len: int,
    adapter_layers: int,
) -> Any:
    """The PEFT configuration for `--peft KIND`.

    `task_type` is "CAUSAL_LM" or "SEQ_CLS" (PEFT then trains and saves the score head too). With neither
    `target_modules` nor `all_linear`, LoRA goes where PEFT's table puts it for the architecture.
    """
    import peft

    if kind == "lora":
        targets = "all-linear" if all_linear else (list(target_modules) if target_modules else None)
        return peft.LoraConfig(
            task_type=task_type, r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets
        )
    if task_type != "CAUSAL_LM":
        raise UserError(f"--peft {kind}: reward models take --peft lora or a full fine-tune (no --peft)")
    if kind == "prompt":
        return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=num_virtual_tokens)
    if kind == "prefix":
        return peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=num_virtual_tokens)
    if kind == "ptun":
        return peft.PromptEncoderConfig(
            task_type=task_type, num_virtual_tokens=num_virtual_tokens, encoder_hidden_size=ptun_hidden_size
        )
    if kind == "llama_adapter":
        return peft.AdaptionPromptConfig(
            task_type=task_type, adapter_len=adapter_len, adapter_layers=adapter_layers
        )
    raise UserError(f"--peft {kind}: unknown; choose lora, prompt, prefix, ptun or llama_adapter")


def configured_adapter(peft: PeftArguments, task_type: str) -> Any:
    """PEFT's configuration of the adapter that `--peft` names; None where it names none."""
    if peft.peft is None:
        return None
    return adapter_config(
        peft.peft,
        task_type=task_type,
        rank=peft.lora_rank,
        alpha=peft.lora_alpha,
        dropout=peft.lora_dropout,
        target_modules=peft.lora_target_modules,
        all_linear=peft.lora_all_linear,
        num_virtual_tokens=peft.num_virtual_tokens,
        ptun_hidden_size=peft.ptun_hidden_size,
        adapter_len=peft.adapter_len,
        adapter_layers=peft.adapter_layers,
    )


def attach_adapter(model: Any, config: Any, *, gradient_checkpointing: bool) -> Any:
    """Wrap `model` in a PEFT model with `config`; the base weights are frozen.

    With gradient checkpointing the embeddings' output must ask for gradients, or nothing inside the first
    checkpointed block is trained. Virtual tokens are as wide as the embeddings, which PEFT takes to be as wide as
    the layers: not so in OPT-350M.
    """
    import peft

    if config.peft_type in (peft.PeftType.PROMPT_TUNING, peft.PeftType.P_TUNING):
        config.token_dim = model.get_input_embeddings().embedding_dim

    if isinstance(getattr(config, "target_modules", None), (list, set)):
        config.target_modules = matching_layers(model, sorted(config.target_modules))
    if getattr(model, "is_quantized", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        model.enable_input_require_grads()
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"--peft: PEFT cannot adapt {type(model).__name__}: {str(error).splitlines()[0]}"
        ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # llama_adapter takes the base's dtype; small steps vanish in bf16
            parameter.data = parameter.data.float()
    return adapted


def matching_layers(model: Any, names: Sequence[str]) -> set[str]:
    """`names`, with those that hold a * replaced by the linear layers they fit; the output head is none of them.

    Raises:
        UserError: a pattern fits nothing.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = [
        name.removesuffix(".base_layer")  # where there is an adapter already
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and ".lora_" not in name
        and name.split(".")[-1] not in ("score", "classifier", "lm_head")
    ]
    found = set()
    for name in names:
        fitting = {layer for layer in layers if fnmatchcase(layer, name)} if "*" in name else {name}
        if not fitting:
            raise UserError(
                f"--lora_target_modules: no linear layer's name contains {name.strip('*')}; they are called as "
                f"{layers[0] if layers else 'nothing'}"
            )
        found |= fitting
    return found


def for_layers_of(model: Any, config: Any) -> Any:
    """`config` for a further adapter on a PEFT model, its layers named as those of the model inside."""
    config = copy.deepcopy(config)
    inner = model.get_base_model()
    if config.target_modules == "all-linear":
        config.target_modules = matching_layers(inner, ["*"])
    elif isinstance(config.target_modules, (list, set)):
        config.target_modules = matching_layers(inner, sorted(config.target_modules))
    return config


def check_trains(model: Any, name: str) -> None:
    """Raise if no weight of `model`, which was loaded from `name`, is trained: a run would change nothing."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{name}: none of the {type(model).__name__}'s weights is trained: all are frozen as loaded; name a model whose "
            "weights can train, or train an adapter on it (--peft lora)"
        )


def count_parameters(model: Any) -> tuple[int, int]:
    """(trained, all) parameters."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters())
