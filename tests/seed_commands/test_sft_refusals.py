"""What seed 001's scripts do where there is nothing to evaluate on, and how a flag of theirs is refused."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState, GradientState
from places import make_places
from transformers import PreTrainedTokenizerFast

from rlhf_hw.cli import sft


@pytest.fixture
def place(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The working directory of one chain of commands; what they change in this process is put back afterwards."""
    environment, argv = dict(os.environ), list(sys.argv)
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("rlhf_hw.report.report.draw_plots", lambda rows, directory, name: [])
    make_places(tmp_path, tiny_tokenizer)
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:], sys.excepthook = argv, hook
    logging.setLogRecordFactory(factory)
    logging.getLogger("rlhf_hw").handlers.clear()


def status(*words: str) -> int:
    """The exit status of SFT, run as if in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    logging.getLogger("rlhf_hw").handlers.clear()  # they write to an earlier stream
    return sft.main(list(words))


def test_without_evaluation_data_only_evaluations_that_were_asked_for_are_missed(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", "facebook/opt-1.3b", "--lora_dim", "2", "--max_train_samples", "4"]
    words += ["--data_path", "Dahoas/synthetic-instruct-gptj-pairwise", "--bf16", "False"]
    assert status(*words, "--output_dir", "unmeasured") == 0
    assert "there is no evaluation data: nothing is evaluated" in capfd.readouterr().err
    assert Path("unmeasured/adapter_model.safetensors").is_file()
    assert status(*words, "--output_dir", "measured", "--eval_strategy", "epoch") == 2
    assert "--eval_strategy epoch: there is no evaluation data" in capfd.readouterr().err


def test_what_a_flag_became_is_said_before_it_is_refused_under_that_name(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", "facebook/opt-1.3b", "--lora_dim", "2", "--device", "cpu"]
    words += ["--dialect", "deepspeed-chat"]
    assert status(*words, "--dtype", "fp16") == 2
    said = capfd.readouterr().err
    assert said.index("--dtype fp16: here --fp16 true") < said.index("error: --fp16: ")
