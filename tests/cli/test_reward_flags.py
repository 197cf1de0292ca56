"""`rlhf-hw reward`: what is trained, what is measured, what is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from run_results import losses, metrics
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Train = Callable[..., Path]


def test_statistics_are_the_mean_and_spread_of_the_chosen_answers_scores(
    trained: Train, reward_flags: list[object], text_llama_dir: Path, pairs_file: Path
) -> None:
    """Two evaluation pairs are too few to tell: the training pairs are scored, here by plain peft."""
    out = trained("reward", *reward_flags, "--eval_dataset_size", 1)
    base = AutoModelForSequenceClassification.from_pretrained(text_llama_dir, num_labels=1)
    model = PeftModel.from_pretrained(base, str(out)).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    scores = []
    for row in map(json.loads, pairs_file.read_text().splitlines()):
        prompt, answer = (tokenizer(row[name]).input_ids for name in ("question", "chosen"))
        inner = model.get_base_model()
        hidden = inner.model(torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])).last_hidden_state
        scores.append(inner.score(hidden[:, -1]).item())
    statistics = json.loads((out / "reward_statistics.json").read_text())
    assert statistics["count"] == 11
    # which pair was held out is the seed's affair: leaving any one of the twelve out gives one of these
    left_out = [torch.tensor(scores[:i] + scores[i + 1 :]) for i in range(12)]
    assert any(
        statistics["mean"] == pytest.approx(rest.mean().item(), abs=1e-4)
        and statistics["std"] == pytest.approx(rest.std().item(), abs=1e-4)
        for rest in left_out
    )


def test_a_whole_reward_model_loads_with_plain_transformers(
    trained: Train, reward_flags: list[object]
) -> None:
    out = trained("reward", *reward_flags, "--peft", "none")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_labels == 1
    assert torch.isfinite(model(torch.tensor([[5, 17, 80]])).logits).all()


@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ((), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (("--lora_target_modules", "q_proj", "v_proj"), {"q_proj", "v_proj"}),
        (("--lora_target_modules", "o_proj,up_proj"), {"o_proj", "up_proj"}),
    ],
    ids=["all_linear", "two_words", "commas"],
)
def test_lora_goes_where_the_flags_say(
    flags: tuple[str, ...], layers: set[str], trained: Train, reward_flags: list[object]
) -> None:
    out = trained("reward", *reward_flags, *flags)
    names = load_file(out / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names if "lora_A" in name} == layers
    assert any("score" in name for name in names)


def test_training_on_pairs_raises_their_accuracy(trained: Train, reward_flags: list[object]) -> None:
    out = trained("reward", *reward_flags, "--max_steps", 6)
    steps = [row for row in metrics(out) if "accuracy" in row]
    assert losses(out)[-1] < losses(out)[0]
    assert steps[-1]["accuracy"] == 1.0
    evaluations = [row for row in metrics(out) if "eval_accuracy" in row]
    assert [row["step"] for row in evaluations] == [0, 6]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


def test_pairs_longer_than_max_length_are_left_out_and_counted(
    run: Callable[..., Any], reward_flags: list[object], workplace: Path
) -> None:
    outcome = run("reward", *reward_flags, "--max_length", 60, "--dry_run", "--output_dir", "out")
    assert outcome.status == 0, outcome.err
    assert "a side is longer than max_length" in outcome.err


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    trained: Train, reward_flags: list[object], workplace: Path
) -> None:
    flags = [*reward_flags, "--max_steps", 4, "--save_steps", 2, "--lora_dropout", 0.1]
    whole = trained("reward", *flags, output="whole")
    killed = shutil.copytree(whole, workplace / "killed")
    shutil.rmtree(killed / "checkpoint-4")
    trained("reward", *flags, "--resume_from_checkpoint", output="killed")
    expected, found = (load_file(directory / "adapter_model.safetensors") for directory in (whole, killed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(killed) == losses(whole)


def test_evaluating_alone_takes_the_checkpoints_weights_and_leaves_the_statistics(
    trained: Train, reward_flags: list[object]
) -> None:
    flags = [*reward_flags, "--max_steps", 2, "--save_steps", 2, "--eval_dataset_size", 4]
    out = trained("reward", *flags, output="whole")
    statistics = (out / "reward_statistics.json").read_bytes()
    after_training = metrics(out)[-1]["eval_loss"]
    trained("reward", *flags, "--do_train", "False", "--resume_from_checkpoint", output="whole")
    assert metrics(out)[-1]["eval_loss"] == pytest.approx(after_training, rel=1e-6)
    assert (out / "reward_statistics.json").read_bytes() == statistics


def test_a_margin_column_is_taken_off_the_lead_and_cross_entropy_is_the_pairwise_loss(
    trained: Train, run: Callable[..., Any], reward_flags: list[object], pairs_file: Path, workplace: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    with_margin = workplace / "margin.jsonl"
    with_margin.write_text("".join(json.dumps({**row, "margin": 2.5}) + "\n" for row in rows))
    flags = [flag if flag != pairs_file else with_margin for flag in reward_flags]
    plain = losses(trained("reward", *reward_flags, output="plain"))
    entropy = losses(trained("reward", *reward_flags, "--rm_loss", "cross_entropy", output="entropy"))
    led = losses(trained("reward", *flags, "--rm_loss", "tokenwise", "--max_steps", 1, output="led"))
    assert entropy == pytest.approx(plain, rel=1e-5)
    assert (
        led[0] > plain[0] + 1.5
    )  # -log sigmoid(x - 2.5) of differences about 0 is 2.58, and of 0 it is 0.69
    with_margin.write_text("".join(json.dumps({**row, "margin": "large"}) + "\n" for row in rows))
    outcome = run("reward", *flags, "--output_dir", "out")
    assert outcome.status == 2
    assert "margin is not a number" in outcome.err
