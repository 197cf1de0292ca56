"""Two models side by side: the answers are each model's own, by every way of writing them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_hw.evaluation.prompts import ANSWERS, PROMPTS

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def other_llama_dir(text_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    model = AutoModelForCausalLM.from_pretrained(text_llama_dir)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    directory = tmp_path_factory.mktemp("other_llama")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(text_llama_dir).save_pretrained(directory)
    return directory


def compared(run: Run, one: Path, two: Path, *more: object) -> Any:
    models = ("--model_name_or_path_baseline", one, "--model_name_or_path_finetune", two)
    return run("compare", *models, "--device", "cpu", "--dtype", "float32", "--max_new_tokens", 5, *more)


def own_answers(directory: Path, prompt: str, **options: Any) -> list[str]:
    """What plain transformers answers."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(f"\n\nHuman: {prompt}\n\nAssistant:", return_tensors="pt").input_ids
    rows = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, **options
    )
    return tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("language", "flags", "options"),
    [
        ("English", [], {}),
        (
            "Japanese",
            ["--num_beams", 3, "--num_return_sequences", 2],
            {"num_beams": 3, "num_return_sequences": 2},
        ),
    ],
)
def test_answers_are_each_models_own(
    language: str,
    flags: list[object],
    options: dict[str, Any],
    run: Run,
    text_llama_dir: Path,
    other_llama_dir: Path,
) -> None:
    outcome = compared(
        run, text_llama_dir, other_llama_dir, "--language", language, "--output_path", "c.json", *flags
    )
    assert outcome.status == 0, outcome.err
    rows = json.loads(Path("c.json").read_text())["rows"]
    assert [row["prompt"] for row in rows] == list(PROMPTS[language])
    for row in rows[:2]:
        assert row["baseline"] == own_answers(text_llama_dir, row["prompt"], **options)
        assert row["finetuned"] == own_answers(other_llama_dir, row["prompt"], **options)
        assert row["baseline"] != row["finetuned"]
    assert "fine-tuned" in outcome.out


@pytest.mark.parametrize(
    ("flags", "method", "answers"),
    [
        (["--num_beams", 4, "--num_beam_groups", 2, "--num_return_sequences", 4], "diverse beam", 4),
        (["--penalty_alpha", 0.6, "--top_k", 4], "contrastive", 1),
        (["--top_k", 4, "--num_return_sequences", 3], "sampling", 3),
        (["--temperature", 0.7], "sampling", 1),
    ],
)
def test_the_flags_that_are_given_choose_how_answers_are_written(
    flags: list[object], method: str, answers: int, run: Run, text_llama_dir: Path
) -> None:
    words = ("--language", "Chinese", "--max_samples", 2, "--output_path", "c.json", *flags)
    outcome = compared(run, text_llama_dir, text_llama_dir, *words)
    assert outcome.status == 0, outcome.err
    content = json.loads(Path("c.json").read_text())
    assert content["decoding"]["method"] == method
    for row in content["rows"]:
        assert len(row["baseline"]) == answers
        assert row["baseline"] == row["finetuned"]  # the same model, the same random numbers


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_return_sequences", 2], "--num_return_sequences: greedy decoding knows one answer"),
        (["--num_beams", 2, "--num_return_sequences", 3], "2 beams cannot end in 3 answers"),
        (["--num_beams", 3, "--num_beam_groups", 2], "--num_beam_groups: 2 groups cannot share 3 beams"),
        (["--penalty_alpha", 1.5], "--penalty_alpha: got 1.5"),
        (["--penalty_alpha", 0.5, "--top_k", 0], "--top_k: got 0"),
        (["--decoding", "beam"], "--num_beams is 1"),
        (["--language", "Latin"], "--language: got 'Latin'"),
        (["--max_new_tokens", 3000], "exceed the context of"),
        (
            ["--model_name_or_path_finetune", "./nowhere"],
            "--model_name_or_path_finetune: there is no directory",
        ),
    ],
)
def test_bad_input_is_one_line(flags: list[object], said: str, run: Run, text_llama_dir: Path) -> None:
    outcome = compared(run, text_llama_dir, text_llama_dir, *flags)
    assert outcome.status == 2
    errors = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert said in errors[0]


def test_each_language_has_six_prompts_of_its_own() -> None:
    assert {language: len(set(prompts)) for language, prompts in PROMPTS.items()} == dict.fromkeys(PROMPTS, 6)
    assert all(good != bad for _, good, bad in ANSWERS)


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        (
            ["--num_beams", 2, "--temperature", 0.5],
            ["temperature: without effect, answers are written by beam"],
        ),
        (["--diversity_penalty", 2], ["diversity_penalty: without effect, answers are written by greedy"]),
        (["--top_k", 3, "--seed", 1], []),
        (["--penalty_alpha", 0.5, "--top_k", 3], []),
        (["--num_beams", 4, "--num_beam_groups", 2, "--diversity_penalty", 2], []),
    ],
)
def test_flags_of_another_way_of_writing_are_said_to_be_idle(
    flags: list[object], idle: list[str], run: Run, text_llama_dir: Path
) -> None:
    outcome = compared(run, text_llama_dir, text_llama_dir, *flags, "--dry_run")
    assert outcome.status == 0, outcome.err
    said = [line for line in outcome.out.splitlines() if "without effect" in line]
    assert [line.startswith(f"--{words}") for line, words in zip(said, idle, strict=True)] == [True] * len(
        idle
    )
