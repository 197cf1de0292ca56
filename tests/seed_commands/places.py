"""A working directory where the names in the seeds' commands exist: tiny models and few rows, under those names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

PAIRS = ("rm-static", "full-hh-rlhf", "synthetic-instruct-gptj-pairwise")
PROMPTS = {
    "prompt_inputs": "Follow the request.\n\n{instruction}\n\n{input}\n\n### Response:",
    "prompt_noinputs": "Follow the request.\n\n{instruction}\n\n### Response:",
}


def make_places(root: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Models and data of seeds 000, 001, 003 and 004; for the last one `root` is the folder of its `train.py`."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64, num_key_value_heads=4))
    opt = OPTForCausalLM(OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=16, dropout=0.1))
    for name, model in {
        "decapoda-research/llama-7b-hf": llama,
        "sft10k/dir": llama,
        "facebook/opt-1.3b": opt,
        "facebook/opt-350m": opt,
        "facebook/opt-13b": opt,
        "opt-1.3b": opt,
        "Atom-7B": llama,
    }.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    reward = AutoModelForSequenceClassification.from_pretrained(root / "sft10k/dir", num_labels=1)
    reward.save_pretrained(root / "reward-model-human/dir")
    tokenizer.save_pretrained(root / "reward-model-human/dir")
    _make_data(root)
    for step in ("step1_supervised", "step2_reward_model", "step3_rlhf"):
        folder = root / "training" / f"{step}_finetuning"
        folder.mkdir(parents=True)
        for name in ("facebook", "Dahoas"):
            (folder / name).symlink_to(root / name)


def _make_data(root: Path) -> None:
    pairs = [
        {
            "prompt": f"Human: How many are {number} and {number}?\n\nAssistant:",
            "chosen": f" They are {2 * number}.",
            "rejected": " I do not know.",
        }
        for number in range(20)
    ]
    for name in PAIRS[:2]:
        _write(root / "Dahoas" / name / "train.jsonl", pairs)
        _write(root / "Dahoas" / name / "test.jsonl", pairs[:10])
    _write(root / "Dahoas" / PAIRS[2] / "train.jsonl", pairs)
    _write(root / "yitingxie" / "rlhf-reward-datasets" / "train.jsonl", pairs)
    _write(root / "rm-static-zh" / "train.jsonl", pairs)
    turns = [{"instruction": f"Human: Say {n}. Assistant: ", "output": f"{n}."} for n in range(8)]
    _write(root / "MultiTurnAlpaca" / "train.jsonl", turns)
    farm = root / "tatsu-lab" / "alpaca_farm" / "alpaca_instructions"
    rows = [{"instruction": f"Say {n}.", "input": "loudly" * (n % 2), "output": str(n)} for n in range(8)]
    _write(farm / "unlabeled.json", rows, lines=False)
    _write(farm / "val.json", rows[:4], lines=False)
    _write(root / "downloaded" / "alpaca_farm_evaluation.json", rows[:4], lines=False)
    (root / "examples" / "prompts").mkdir(parents=True)
    (root / "examples" / "prompts" / "v0_inputs_noinputs.json").write_text(json.dumps(PROMPTS))


def _write(path: Path, rows: list[dict[str, str]], *, lines: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
