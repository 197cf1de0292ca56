"""Configurations of well-known models, so that asking about them needs no download."""

from __future__ import annotations

from typing import Any

_LLAMA_2 = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
_LLAMA_3 = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072}
_OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}


def _llama(base: dict[str, Any], hidden: int, inner: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    return {**base, **sizes, "num_attention_heads": heads, "num_key_value_heads": kv}


def _opt(hidden: int, layers: int, heads: int, embedding: int | None = None) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "ffn_dim": 4 * hidden, "num_hidden_layers": layers}
    wide = {"num_attention_heads": heads, "word_embed_proj_dim": embedding or hidden}
    return {**_OPT, **sizes, **wide, "do_layer_norm_before": embedding is None}


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}
    return {"model_type": "gpt2", **sizes}


#: name → what its config.json says of its sizes
KNOWN: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama(_LLAMA_2, 4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama(_LLAMA_2, 5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama(_LLAMA_2, 8192, 28672, 80, 64, 8),
    "llama-3-8b": _llama(_LLAMA_3, 4096, 14336, 32, 32, 8),
    "llama-3-70b": _llama(_LLAMA_3, 8192, 28672, 80, 64, 8),
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, embedding=512),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
}

#: hub names → ours
_HUB = {
    **{
        f"meta-llama/llama-2-{size}{kind}-hf": f"llama-2-{size}"
        for size in ("7b", "13b", "70b")
        for kind in ("", "-chat")
    },
    **{
        f"meta-llama/meta-llama-3-{size}{kind}": f"llama-3-{size}"
        for size in ("8b", "70b")
        for kind in ("", "-instruct")
    },
    **{
        f"meta-llama/llama-3.1-{size}{kind}": f"llama-3-{size}"
        for size in ("8b", "70b")
        for kind in ("", "-instruct")
    },
    **{f"facebook/{name}": name for name in KNOWN if name.startswith("opt-")},
    **{f"openai-community/{name}": name for name in KNOWN if name.startswith("gpt2")},
}


def known(name: str) -> dict[str, Any] | None:
    """The sizes of a model that is known by this name, its own or the hub's; None of another."""
    name = name.lower()
    return KNOWN.get(_HUB.get(name, name))
