"""What a command left behind: read with plain transformers and PEFT, and asked for finite numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

CLASSES = {
    "sft": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification,
    "ppo": AutoModelForCausalLM,
}
TEXT = "Human: How many are 2 and 2?\n\nAssistant:"


def by_a_stage(directory: Path, stage: str, device: str) -> list[str]:
    """What a training on `device` left: its numbers are finite, its weights load and answer."""
    assert json.loads((directory / "status.json").read_text())["state"] == "finished"
    assert json.loads((directory / "environment.json").read_text())["backend"]["backend"] == device
    rows = metrics(directory)
    assert any("loss" in row or "train_loss" in row for row in rows)
    for row in rows:
        assert "nonfinite" not in row
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, (int, float)))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    found = [_weights(directory, CLASSES[stage], tokenizer)]
    if stage == "reward":
        statistics = json.loads((directory / "reward_statistics.json").read_text())
        assert statistics["std"] > 0
        found.append("statistics of its scores")
    if stage == "ppo":
        found.append(_critic(directory, tokenizer))
    return found


def by_a_merge(directory: Path) -> list[str]:
    """What merging an adapter left."""
    found = _weights(directory, AutoModelForCausalLM, AutoTokenizer.from_pretrained(directory))
    assert found == "whole model"
    return [found]


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _critic(directory: Path, tokenizer: Any) -> str:
    if not (directory / "critic").is_dir():
        head = load_file(directory / "value_head.safetensors")
        assert head
        assert all(torch.isfinite(tensor).all() for tensor in head.values())
        return "value head"
    return f"critic: {_weights(directory / 'critic', AutoModelForSequenceClassification, tokenizer)}"


def _weights(directory: Path, model_class: Any, tokenizer: Any) -> str:
    """Which weights they are, once they have loaded and answered. A base is found from the working directory."""
    more = {"num_labels": 1} if model_class is AutoModelForSequenceClassification else {}
    config = directory / "adapter_config.json"
    if config.is_file():
        base = json.loads(config.read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(model_class.from_pretrained(base, **more), str(directory))
        kind = "adapter"
    else:
        model, kind = model_class.from_pretrained(directory, **more), "whole model"
    inputs = tokenizer(TEXT, return_tensors="pt")
    logits = model.eval().float()(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
    assert torch.isfinite(logits).all()
    return kind


def _chat(nothing: Path, said: str, device: str) -> list[str]:
    assert f" on {device}. " in said
    assert re.search(r"model> .*\S", said)
    return ["an answer"]


def _answers(file: Path, said: str, device: str) -> list[str]:
    rows = json.loads(file.read_text())
    assert len(rows) == 4
    assert all({"instruction", "output_1", "output_2"} <= set(row) for row in rows)
    return ["answers"]


def _verdicts(file: Path, said: str, device: str) -> list[str]:
    assert [row["preference"] in (1, 1.5, 2) for row in json.loads(file.read_text())] == [True] * 4
    assert 0 <= json.loads(file.with_suffix(".summary.json").read_text())["win_rate"]["rate"] <= 1
    return ["verdicts and the win rate"]


def _comparison(nothing: Path, said: str, device: str) -> list[str]:
    assert f"finetuned: output on {device}, greedy" in said
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│ (.+?) +│$", said, re.MULTILINE)
    assert sum(prompt.endswith((".", "?")) for prompt, _, _ in rows) == 6
    return ["answers of both models"]


def _scores(nothing: Path, said: str, device: str) -> list[str]:
    assert re.search(r"^accuracy [01]\.\d+ on 4 pairs", said, re.MULTILINE)
    assert all(
        math.isfinite(float(score)) for score in re.findall(r"│ +([-+]?[\d.]+|[-+]?nan|[-+]?inf) ", said)
    )
    return ["scores and accuracy"]


def _pipeline(output: Path, said: str, device: str) -> list[str]:
    results = json.loads((output / "results.json").read_text())
    assert set(results["seconds"]) == {"step_1", "step_2", "step_3"}
    folders = [
        *output.glob("actor-models/*"),
        *output.glob("reward-models/*"),
        *output.glob("step3-models/*"),
    ]
    found = {}
    for folder in folders:
        stage = {"actor-models": "sft", "reward-models": "reward", "step3-models": "ppo"}[folder.parent.name]
        found[stage] = by_a_stage(folder, stage, device)
    return [f"{stage}: {', '.join(what)}" for stage, what in found.items()] + ["table of results"]


#: `rlhf-hw`'s other commands: (what was written, what was said, the device) → what was left
BY_A_TOOL = {
    "chat": _chat,
    "infer": _answers,
    "judge": _verdicts,
    "compare": _comparison,
    "score": _scores,
    "train": _pipeline,
}
