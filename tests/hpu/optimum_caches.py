"""What optimum-habana's checkpoints and caches do: `optimum_caches.py upstream|mended ARCHITECTURE…`.

The last line is a JSON object: check → "", or the error that it ended with.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from backends import optimum_habana
from rlhf_hw.compat.activation_checkpointing import can_recompute

KIND, *ARCHITECTURES = sys.argv[1:]
MODELS = "optimum.habana.transformers.models"
CACHES = {
    "shared": f"{MODELS}.modeling_all_models",
    **{
        name: f"{MODELS}.{name}.modeling_{name}"
        for name in ("llama", "gemma", "gptj", "qwen2_moe", "deepseek_v2", "deepseek_v3")
    },
}


def recompute() -> None:
    """A layer of three inputs, recomputed in its backward pass."""
    from optimum.habana.transformers import gradient_checkpointing

    inputs = [torch.full((2,), 2.0, requires_grad=True) for _ in range(3)]
    layer = gradient_checkpointing.checkpoint(lambda a, b, c: a.exp() * b * c, *inputs, use_reentrant=False)
    layer.sum().backward()
    assert torch.equal(inputs[0].grad, torch.full((2,), 2.0).exp() * 4), inputs[0].grad


def cache(name: str) -> None:
    """A cache of fp32 is given a bf16 key for its second place."""
    kept, key = torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    updated = importlib.import_module(CACHES[name]).KVCache().update(kept, key, 2, torch.tensor([2]), 0)
    assert updated[0, 0, :, 0].tolist() == [0, 1, 0, 0]


def generate(architecture: str) -> None:
    """fp32 weights answer under bf16 autocast, as a rollout of PPO runs: each token is the likeliest one, as a pass without
    a cache has it."""
    model = model_of(architecture).to("hpu").eval()
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]], device="hpu")
    options = {"static_shapes": True, "ignore_eos": True, "lazy_mode": True, "hpu_graphs": False}
    options |= {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), torch.autocast("hpu", dtype=torch.bfloat16):
        answered = model.generate(input_ids=ids, use_cache=True, **options)
        logits = model(answered, use_cache=False).logits[:, ids.shape[1] - 1 : -1].float().cpu()
    chosen = logits.gather(-1, answered[:, ids.shape[1] :].cpu().unsqueeze(-1)).squeeze(-1)
    behind = (logits.amax(-1) - chosen).max() / logits.std()
    assert behind < 0.05, (
        f"a token's logit is {behind:.2g} standard deviations below the largest"
    )  # bf16 has 8 bits


def recomputes(architecture: str) -> None:
    """What is said of gradient checkpointing (`can_recompute`) is what happens: a layer's forward pass runs twice, or not."""
    from transformers.pytorch_utils import Conv1D

    model = model_of(architecture).to("hpu").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    mapped = [module for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    calls: list[None] = []
    mapped[0].register_forward_hook(lambda *_: calls.append(None))
    ids = torch.tensor([[3, 4, 5, 6, 7]], device="hpu")
    outputs = model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    outputs.logits.sum().backward()
    assert can_recompute(model) == (len(calls) == 2), f"runs {len(calls)} times"
    assert can_recompute(model) or architecture in ("opt", "gpt2"), "recomputes nothing"


def model_of(architecture: str) -> Any:
    """A small random causal language model."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert architecture in CONFIG_MAPPING
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if architecture in ("gpt2", "gptj"):
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes |= {"rotary_dim": 4} if architecture == "gptj" else {}
    elif architecture == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    elif architecture != "falcon":
        sizes |= {"intermediate_size": 48, "max_position_embeddings": 64}
    if architecture in ("qwen2", "mistral"):
        sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model(
        architecture,
        **sizes,
        vocab_size=96,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.25,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def outcome(check: Callable[..., None], *arguments: str) -> str:
    try:
        check(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if KIND == "mended":
    optimum_habana.optimum_habana()
with optimum_habana._own_pip_first(), optimum_habana._torchvision_importable():
    for name in (f"{MODELS.rpartition('.')[0]}.trainer", *CACHES.values()):
        importlib.import_module(name)
    importlib.import_module(f"{MODELS.rpartition('.')[0]}.modeling_utils").adapt_transformers_to_gaudi()
found = {"recompute": outcome(recompute)}
found |= {f"cache {name}": outcome(cache, name) for name in CACHES}
found |= {f"generate {name}": outcome(generate, name) for name in ARCHITECTURES}
if KIND == "mended":
    found |= {f"recomputes {name}": outcome(recomputes, name) for name in ARCHITECTURES}
print(json.dumps(found))
