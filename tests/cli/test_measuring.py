"""A reward model's accuracy and a language model's perplexity: the figures that the stages themselves report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import metrics, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_hw.evaluation.accuracy import Accuracy

Run = Callable[..., Any]
ALONE = ("--device", "cpu", "--dtype", "float32")


def held_out_rows(count: int = 9) -> list[dict[str, str]]:
    return [
        {
            "question": f"Is {number} even?",
            "chosen": "Yes" if number % 2 == 0 else "No, it is odd",
            "rejected": "Perhaps" + " or not" * number,
            "topic": ["sums", "words", ""][number % 3],
        }
        for number in range(count)
    ]


def test_a_reward_model_is_as_right_as_its_training_said(
    run: Run, trained: Callable[..., Path], reward_flags: list[object], workplace: Path
) -> None:
    rows = held_out_rows()
    file = write_rows(workplace / "held_out.jsonl", rows)
    flags = [*reward_flags, "--validation_file", file, "--do_eval", "--do_train", "--use_cpu"]
    model = trained("reward", *flags, output="reward")
    said = [row for row in metrics(model) if "eval_accuracy" in row][-1]

    words = (
        "score",
        "--model_name_or_path",
        model,
        "--dataset_name",
        file,
        *ALONE,
        "--output_path",
        "s.json",
    )
    outcome = run(*words, "--by", "topic", "--batch_size", 4)
    assert outcome.status == 0, outcome.err
    found = json.loads(Path("s.json").read_text())
    assert found["all"]["accuracy"] == said["eval_accuracy"]
    assert found["all"]["good_mean"] == pytest.approx(said["eval_chosen_mean"], abs=1e-4)
    assert found["all"]["bad_mean"] == pytest.approx(said["eval_rejected_mean"], abs=1e-4)
    assert (found["all"]["low"], found["all"]["high"]) == pytest.approx(
        (said["eval_accuracy_low"], said["eval_accuracy_high"])
    )
    assert {name: part["pairs"] for name, part in found["subsets"].items()} == {
        "(none)": 3,
        "sums": 3,
        "words": 3,
    }
    for part, scores in found["scores"].items():
        assert found["subsets"][part]["accuracy"] == sum(s["good"] > s["bad"] for s in scores) / 3
    assert f"accuracy {said['eval_accuracy']:.4f} on 9 pairs" in outcome.out

    outcome = run("score", "--model_name_or_path", model, "--num_padding_at_beginning", 1, *ALONE)
    assert outcome.status == 0, outcome.err
    assert "--num_padding_at_beginning: no effect here" in outcome.out
    assert " on 4 pairs" in outcome.out
    two = run(
        "score", "--model_name_or_path", model, "--dataset_name", file, "held_out.jsonl", *ALONE, "--dry_run"
    )
    assert "would score 18 pairs" in two.out


def test_a_language_models_perplexity_is_that_of_its_training(
    run: Run, trained: Callable[..., Path], sft_flags: list[object], workplace: Path
) -> None:
    file = write_rows(workplace / "held_out.jsonl", held_out_rows())
    flags = [*sft_flags, "--full_finetune", "--validation_file", file, "--do_eval", "--do_train", "--use_cpu"]
    model = trained("sft", *flags, output="sft")
    said = [row for row in metrics(model) if "eval_perplexity" in row][-1]["eval_perplexity"]
    words = ("perplexity", "--model_name_or_path", model, "--dataset_name", file, *ALONE)
    assert run(*words, "--batch_size", 4, "--output_path", "p.json").status == 0
    assert json.loads(Path("p.json").read_text())["all"]["perplexity"] == pytest.approx(said, rel=1e-4)
    outcome = run(*words, "--by", "topic", "--output_path", "parts.json")
    assert outcome.status == 0, outcome.err
    found = json.loads(Path("parts.json").read_text())
    assert found["all"]["perplexity"] == pytest.approx(said, rel=1e-4)
    assert sorted(found["subsets"]) == ["(none)", "sums", "words"]


def test_perplexity_of_whole_texts_is_transformers_own(
    run: Run, text_llama_dir: Path, workplace: Path
) -> None:
    texts = ["Blue is a colour.", "The capital of France is Paris, and so on."]
    file = write_rows(workplace / "texts.jsonl", [{"text": text} for text in texts])
    words = (
        "perplexity",
        "--model_name_or_path",
        text_llama_dir,
        "--dataset_name",
        file,
        "--train_on_inputs",
        *ALONE,
    )
    assert run(*words, "--output_path", "p.json").status == 0
    model = AutoModelForCausalLM.from_pretrained(text_llama_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_llama_dir)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    found = json.loads(Path("p.json").read_text())["all"]
    assert found["tokens"] == tokens
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("score", [], "--model_name_or_path: "),
        ("perplexity", [], "--dataset_name: required"),
        (
            "perplexity",
            ["--dataset_name", "rows.jsonl", "--by", "nothing"],
            "has no column nothing; it has chosen",
        ),
        ("perplexity", ["--dataset_name", "nowhere.jsonl"], "nowhere.jsonl"),
        (
            "perplexity",
            ["--dataset_name", "rows.jsonl", "rows.jsonl", "--by", "topic"],
            "--by: parts one data set",
        ),
        ("perplexity", ["--dataset_name", "rows.jsonl", "--output_path", "rows.jsonl"], "is there already"),
        ("perplexity", ["--by", "topic"], "--by: names a column of a data set"),
    ],
)
def test_bad_input_is_one_line(
    command: str, more: list[str], said: str, run: Run, text_llama_dir: Path, workplace: Path
) -> None:
    write_rows(workplace / "rows.jsonl", held_out_rows())
    outcome = run(command, "--model_name_or_path", text_llama_dir, *more)
    assert outcome.status == 2, outcome.out
    errors = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert said in errors[0]


def test_accuracy_by_hand() -> None:
    found = Accuracy.of([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (2.0, -1.0)])
    assert (found.pairs, found.accuracy, found.good_mean, found.bad_mean) == (4, 0.5, 0.875, 0.125)
    assert found.low == pytest.approx(1 - found.high)
