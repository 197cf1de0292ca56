"""`--tokenizer_name` names a tokenizer, and a directory that holds nothing else will do."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf_hw.errors import UserError
from rlhf_hw.models.load import check_tokenizer_path

REWARD = "def score(prompts, responses):\n    return [float(len(text)) for text in responses]\n"


@pytest.fixture
def apart(text_llama_dir: Path, workplace: Path) -> tuple[Path, Path]:
    """A model's directory without a tokenizer, and the tokenizer's, without a model."""
    model, tokenizer = workplace / "model", workplace / "tokenizer"
    shutil.copytree(text_llama_dir, model, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    AutoTokenizer.from_pretrained(text_llama_dir).save_pretrained(tokenizer)
    assert not (tokenizer / "config.json").exists()
    return model, tokenizer


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_the_stages_take_the_tokenizer_from_a_directory_without_a_model(
    stage: str, apart: tuple[Path, Path], run: Callable[..., Any], pairs_file: Path, tmp_path: Path
) -> None:
    model, tokenizer = apart
    words: list[object] = ["--model_name", model, "--train_file", pairs_file, "--output_dir", "out"]
    if stage == "ppo":
        (tmp_path / "tokenizer_name_reward.py").write_text(REWARD)
        words += ["--reward_function", "tokenizer_name_reward:score", "--steps", 4, "--batch_size", 4]
        words += ["--mini_batch_size", 2, "--gradient_accumulation_steps", 2, "--output_max_length", 4]
    else:
        words += ["--max_steps", 1]
    outcome = run(stage, *words, "--bf16", "False", "--tokenizer_name", tokenizer)
    assert outcome.status == 0, outcome.err
    assert len(AutoTokenizer.from_pretrained("out")) == len(AutoTokenizer.from_pretrained(tokenizer))


def test_chat_takes_the_tokenizer_from_a_directory_without_a_model(
    apart: tuple[Path, Path],
    run: Callable[..., Any],
    text_llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokenizer = apart
    words = ["--device", "cpu", "--temperature", 0, "--max_new_tokens", 5]
    said = []
    for flags in (["--path", text_llama_dir], ["--path", model, "--tokenizer_name", tokenizer]):
        monkeypatch.setattr("sys.stdin", io.StringIO("Name a colour.\n/quit\n"))
        outcome = run("chat", *flags, *words)
        assert outcome.status == 0, outcome.err
        said.append(outcome.out.partition("you> ")[2])
    assert said[0] == said[1]
    assert "model> " in said[0]


def test_a_directory_without_a_tokenizer_is_refused(
    apart: tuple[Path, Path], run: Callable[..., Any], pairs_file: Path
) -> None:
    model, _ = apart
    words = ["--model_name", model, "--train_file", pairs_file, "--output_dir", "out"]
    outcome = run("sft", *words, "--tokenizer_name", model)
    assert outcome.status == 2
    assert f"--tokenizer_name: {model} is a directory without a tokenizer" in outcome.err
    outcome = run("chat", "--path", model, "--tokenizer_name", "./nowhere")
    assert outcome.status == 2
    assert "--tokenizer_name: there is no directory ./nowhere" in outcome.err


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt", "spiece.model", "tokenizer_config.json"])
def test_whatever_a_tokenizer_is_saved_as_will_do(file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="without a tokenizer"):
        check_tokenizer_path(str(tmp_path), "--tokenizer_name")
    (tmp_path / file).touch()
    check_tokenizer_path(str(tmp_path), "--tokenizer_name")
    check_tokenizer_path("someone/some-tokenizer", "--tokenizer_name")
