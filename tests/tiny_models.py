"""Tiny models and a tiny tokenizer, made from seeds: for tests, and for the small programs that tests start."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

ARCHITECTURES = ("llama", "gpt2", "opt", "qwen2")
VOCABULARY = 96
CONTEXT = 64


def tiny_model(
    architecture: str = "llama", *, labels: int | None = None, dropout: float = 0.0, seed: int = 0
) -> Any:
    """A causal model, or a classifier with `labels` outputs, in fp32 and in evaluation mode.

    The same weights for the same arguments. They are about ten times as large as usual, so that predictions differ
    and a mistake shows.
    """
    torch.manual_seed(seed)
    config = _config(architecture, dropout)
    if labels is None:
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    config.num_labels = labels
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").eval()


def long_context(kind: str, trained: int = 6) -> dict[str, Any]:
    """What a configuration says of rotary embeddings (heads of 8) that change beyond `trained` tokens."""
    said: dict[str, Any] = {"rope_type": kind, "factor": 4.0}
    if kind == "longrope":
        said |= {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 2.0, 6.0]}
        said["original_max_position_embeddings"] = trained
    if transformers.__version__.startswith("4."):
        return {"rope_scaling": said}
    return {"rope_parameters": {**said, "rope_theta": 10000.0}}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word a token ("w4" … "w95"), with `<pad>`, `<s>`, `</s>` and `<unk>` all apart; adds nothing of its own."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
    )


def _config(architecture: str, dropout: float) -> Any:
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    rotary = {
        **ids,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.25,
    }
    if architecture == "llama":
        return LlamaConfig(**rotary, tie_word_embeddings=False)
    if architecture == "qwen2":
        return Qwen2Config(**rotary, tie_word_embeddings=True)
    if architecture == "gpt2":
        drops = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return GPT2Config(
            **ids, **drops, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.25
        )
    # as OPT-350M: embeddings narrower than the layers, projected in and out
    return OPTConfig(
        **ids,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        dropout=dropout,
        attention_dropout=dropout,
        init_std=0.25,
    )
