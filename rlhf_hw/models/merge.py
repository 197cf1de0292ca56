"""Merging an adapter into its base model, so that it loads without PEFT."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_hw.errors import UserError
from rlhf_hw.models.load import (
    ADAPTER_CONFIG,
    MERGEABLE,
    LoadOptions,
    adapter_base,
    is_adapter,
    load_policy,
    load_sequence_classifier,
    load_tokenizer,
    with_adapter_merged,
)
from rlhf_hw.models.reward_model import STATISTICS_FILE

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def merge_adapter(adapter: str, output: str, options: LoadOptions, base: str | None = None) -> str:
    """Merge the adapter in directory `adapter` into its base and write a plain model directory `output`.

    Writes tokenizer and chat template too (from the adapter's directory, else the base's), and keeps a reward
    model's score statistics. Returns the task type ("CAUSAL_LM" or "SEQ_CLS").

    Raises:
        UserError: not an adapter, not of a mergeable kind, or `output` is not empty.
    """
    task = check_merge(adapter, output, options)
    if base is not None:
        options = replace(options, flag="--base_model_name")
    base = base or adapter_base(adapter)
    tokenizer = load_tokenizer(_with_tokenizer(adapter, base), options)
    model = _merged(adapter, base, task, options, tokenizer.pad_token_id)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    statistics = Path(adapter) / STATISTICS_FILE
    if statistics.is_file():
        shutil.copy(statistics, Path(output) / STATISTICS_FILE)
    return task


def check_merge(adapter: str, output: str, options: LoadOptions) -> str:
    """What can be checked before anything loads; the adapter's task type."""
    if not is_adapter(adapter):
        raise UserError(
            f"{options.flag}: {adapter} has no {ADAPTER_CONFIG}; name the directory of a PEFT adapter"
        )
    config = json.loads((Path(adapter) / ADAPTER_CONFIG).read_text())
    if config["peft_type"] not in MERGEABLE:
        raise UserError(
            f"{options.flag}: a {config['peft_type']} adapter cannot be merged into weights; load it with peft instead"
        )
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output_name: {output} exists and is not empty; choose another directory")
    return config["task_type"]


def _with_tokenizer(adapter: str, base: str) -> str:
    """The first that brings a tokenizer: the adapter, its base, that one's base if it is an adapter too, …"""
    name = adapter if _has_tokenizer(adapter) else base
    while is_adapter(name) and not _has_tokenizer(name):
        name = adapter_base(name)
    return name


def _has_tokenizer(directory: str) -> bool:
    return any((Path(directory) / name).is_file() for name in _TOKENIZER_FILES)


def _merged(adapter: str, base: str, task: str, options: LoadOptions, pad_token_id: int) -> Any:
    if task == "SEQ_CLS":
        model = load_sequence_classifier(base, options, pad_token_id)
    else:
        model = load_policy(base, options)
    return with_adapter_merged(model, adapter, options.flag)
