"""Models as the stages build them, of tensors without storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rlhf_hw.compat.dtype_argument import dtype_argument
from rlhf_hw.errors import UserError
from rlhf_hw.models.wrapping import trunk


def causal_model(config: Any, dtype: torch.dtype, attention: str) -> Any:
    """A causal language model on the meta device."""
    from transformers import AutoModelForCausalLM

    return _made(AutoModelForCausalLM, config, dtype, attention)


def classifier(config: Any, dtype: torch.dtype, attention: str) -> Any:
    """A model with one label on the meta device, its head in fp32 as `load_sequence_classifier` leaves it."""
    from transformers import AutoModelForSequenceClassification

    config.num_labels = 1
    config.pad_token_id = 0
    model = _made(AutoModelForSequenceClassification, config, dtype, attention)
    for (
        weight
    ) in model.parameters():  # transformers 4.55 makes the decoder inside in the dtype of its configuration
        weight.data = weight.data.to(dtype)
    if isinstance(getattr(model, "score", None), nn.Linear):
        model.score.to(torch.float32)
    return model


def _made(kind: Any, config: Any, dtype: torch.dtype, attention: str) -> Any:
    try:
        with torch.device("meta"):
            return kind.from_config(config, attn_implementation=attention, **dtype_argument(dtype))
    except (ValueError, ImportError) as error:
        raise UserError(
            f"--model_name_or_path: no {kind.__name__} of a {config.model_type}: {str(error).splitlines()[0]}"
        ) from error


def materialise(model: nn.Module) -> None:
    """Turn a model's meta tensors into fake ones, shared where they were shared. Call inside a FakeTensorMode."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _fake(tensor)
                table[name] = made[id(tensor)]
        for there in (vars(module), *(held for held in vars(module).values() if type(held) is dict)):
            for (
                name,
                tensor,
            ) in there.items():  # PEFT keeps ids of virtual tokens outside parameters and buffers
                if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                    there[name] = made.setdefault(id(tensor), _fake(tensor))


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return (
        nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a decoder: the list that is as long as its configuration says."""
    inner = trunk(model)
    count = inner.config.num_hidden_layers
    for module in inner.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"--model_name_or_path: {type(inner).__name__} has no list of {count} layers to count")


def quantized_bytes(model: nn.Module, bits: int, double_quant: bool) -> tuple[int, int]:
    """(bytes that holding the decoder's linear weights in `bits` bits saves, bytes of the largest one while it is used).

    4 bits: half a byte a weight, and a scale of 4 bytes for each 64 (with double quantization one of 1 byte, and 4 bytes
    for each 256 of those): Dettmers et al. 2023 (arXiv 2305.14314), section 3. 8 bits: a byte, and 4 a row.
    """
    saved = largest = 0
    for weight in _linear_weights(model):
        scales = weight.numel() / 64
        four = weight.numel() / 2 + (scales + scales / 64 if double_quant else 4 * scales)
        held = four if bits == 4 else weight.numel() + 4 * weight.shape[0]
        saved += int(weight.numel() * weight.element_size() - held)
        largest = max(largest, weight.numel() * 2)
    return saved, largest


def as_prepared_for_bits(model: nn.Module) -> None:
    """fp32 for all weights that stay unquantized, as PEFT's `prepare_model_for_kbit_training` leaves them."""
    quantized = {id(weight) for weight in _linear_weights(model)}
    for parameter in model.parameters():
        if id(parameter) not in quantized:
            parameter.data = parameter.data.float()


def _linear_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    from transformers.pytorch_utils import Conv1D

    heads = {
        id(module) for module in (model.get_output_embeddings(), getattr(model, "score", None)) if module
    }
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and id(module) not in heads:
            yield module.weight
