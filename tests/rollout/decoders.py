"""Small decoders whose positions and attention differ, beside those of `tiny_models`."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA_LIKE = {**_WIDTH, "intermediate_size": 48, "max_position_embeddings": CONTEXT}
_OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neox": _LLAMA_LIKE,
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**_WIDTH, "alibi": True, "new_decoder_architecture": False, "multi_query": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT},
    "mistral": {**_LLAMA_LIKE, "num_key_value_heads": 2, "sliding_window": 6},
    "qwen3": {**_LLAMA_LIKE, "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": CONTEXT,
    },
}
DECODERS = (*ARCHITECTURES, *_OTHERS)


def decoder(name: str) -> Any:
    """A causal language model with random weights, its head small enough that answers neither end nor repeat at once."""
    if name in ARCHITECTURES:
        model = tiny_model(name)
    else:
        torch.manual_seed(0)
        ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ids, **_OTHERS[name])).eval()
        with torch.no_grad():
            for weights in model.parameters():
                if weights.dim() > 1:
                    weights.normal_(0, 0.2)
    return flat(model)


def flat(model: Any) -> Any:
    """`model` with milder predictions, so that answers neither end nor repeat at once."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.3)
    return model
