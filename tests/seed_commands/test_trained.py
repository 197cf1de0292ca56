"""The commands of seeds 000, 001 and 003 run to their end on tiny models, stage after stage, and leave what they should.

As written, but for the sizes that a test cannot wait for, and for paths, which begin at the working directory.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import seed_000
import seed_001
import seed_003
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from commands import SeedCommand
from peft import PeftModel
from places import make_places
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_hw.cli import ppo, reward, sft

MAIN: dict[str, Callable[[list[str]], int]] = {"sft": sft.main, "reward": reward.main, "ppo": ppo.main}


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


def run(command: SeedCommand, *more: str, **words: str) -> None:
    """Run a command to its end, without its sharding. `words`: what stands for a word in it."""
    argv = [
        words.get(word, word.replace("/root/autodl-tmp/", "").removeprefix("/alpacafarm/"))
        for word in alone(command)
    ]
    assert status(command.stage, *argv, *more) == 0


def status(stage: str, *words: str) -> int:
    """The exit status of a stage, run as if in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    logging.getLogger("rlhf_hw").handlers.clear()  # they write to an earlier stream
    return MAIN[stage](list(words))


def alone(command: SeedCommand) -> list[str]:
    """The command's words for one process that shares nothing."""
    words, kept = iter(command.words()), []
    for word in words:
        if word.endswith("zero_stage"):
            next(words)
        elif word != "--deepspeed":
            kept.append(word)
    return kept


def config(directory: str) -> dict[str, Any]:
    return yaml.safe_load((Path(directory) / "config.yaml").read_text())


def rows(directory: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]


def answers(directory: str, base: str) -> None:
    """The saved adapter answers on its base, with finite numbers."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory)
    tokens = AutoTokenizer.from_pretrained(directory)("How many are 2 and 2?", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=tokens).logits).all()


def adapted_layers(directory: str) -> set[str]:
    return {
        name.split(".")[-3]
        for name in load_file(Path(directory) / "adapter_model.safetensors")
        if "lora_A" in name
    }


def test_seed_000_goes_from_a_llama_to_a_policy_with_a_critic(place: Path) -> None:
    base = "decapoda-research/llama-7b-hf"
    run(seed_000.SFT)
    assert adapted_layers("rlhf/actor") == {"q_proj", "k_proj"}
    answers("rlhf/actor", base)
    run(seed_000.REWARD)
    assert adapted_layers("rlhf/critic") == {"q_proj", "k_proj"}
    statistics = json.loads(Path("rlhf/critic/reward_statistics.json").read_text())
    assert statistics["std"] > 0
    run(seed_000.PPO, "--max_answer_seq_len", "12")
    assert adapted_layers("rlhf/final") == {"q_proj"}
    assert adapted_layers("rlhf/final/critic") == {"q_proj", "k_proj"}
    updates = [row for row in rows("rlhf/final") if "objective/kl" in row]
    # a fifth of 20 prompts, 4 a rollout, one pass; 2 epochs of one step
    assert [row["step"] for row in updates] == [2]
    assert all(math.isfinite(row["policy/loss"]) for row in updates)


def test_seed_001_goes_from_opt_to_a_policy_with_a_critic(place: Path) -> None:
    run(seed_001.SFT)
    sft_directory = "output/actor-models/1.3b"
    blocks = {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert adapted_layers(sft_directory) == {*blocks, "project_in", "project_out"}
    answers(sft_directory, "facebook/opt-1.3b")
    losses = [row["eval_loss"] for row in rows(sft_directory) if "eval_loss" in row]
    assert losses[-1] < losses[0]
    run(seed_001.REWARD)
    assert not list(Path("output/reward-models/350m").glob("adapter*"))
    run(seed_001.PPO, "--max_answer_seq_len", "12")
    final = config("output/step3-models/1.3b")
    assert final["stage"]["generation_batches"] == 2
    updates = [row for row in rows("output/step3-models/1.3b") if "objective/kl" in row]
    assert len(updates) == 1  # 8 of 20 prompts in one update of 16 answers
    assert updates[0]["ppo/episodes"] == 16
    assert Path("output/step3-models/1.3b/critic/model.safetensors").is_file()


def test_seed_003_learns_from_alpacafarms_instructions(place: Path) -> None:
    sizes = {"256": "16", "128": "8", "16": "2", "20": "2", "100": "3", "10": "6"}
    run(
        seed_003.PPO,
        *("--response_len", "12", "--save_steps_extra", "1"),
        **sizes,
        **{"/output/dir/for/saving/lora/weights": "weights"},
    )
    answers("weights", "sft10k/dir")
    assert adapted_layers("weights") == {"q_proj", "k_proj", "v_proj", "o_proj"}
    updates = [row["step"] for row in rows("weights") if "objective/kl" in row]
    # 6 passes over 8 prompts, 16 an update; 2 epochs of 2 steps
    assert updates == [4, 8, 12]
    saved = {path.name for path in Path("weights").glob("checkpoint-*")}
    assert {"checkpoint-4", "checkpoint-8"} <= saved  # update 1, and the second
    assert [row["step"] for row in rows("weights") if "eval_scores" in row][1] == 12  # after update 3
    samples = Path("weights/samples.jsonl").read_text()
    assert "Follow the request." in samples  # --prompt_dict_path


def test_without_evaluation_data_only_evaluations_that_were_asked_for_are_missed(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", "facebook/opt-1.3b", "--lora_dim", "2", "--max_train_samples", "4"]
    words += ["--data_path", "Dahoas/synthetic-instruct-gptj-pairwise", "--bf16", "False"]
    assert status("sft", *words, "--output_dir", "unmeasured") == 0
    assert "there is no evaluation data: nothing is evaluated" in capfd.readouterr().err
    assert Path("unmeasured/adapter_model.safetensors").is_file()
    assert status("sft", *words, "--output_dir", "measured", "--eval_strategy", "epoch") == 2
    assert "--eval_strategy epoch: there is no evaluation data" in capfd.readouterr().err


def test_what_a_flag_became_is_said_before_it_is_refused_under_that_name(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", "facebook/opt-1.3b", "--lora_dim", "2", "--device", "cpu"]
    assert status("sft", *words, "--dtype", "fp16") == 2
    said = capfd.readouterr().err
    assert said.index("--dtype fp16: here --fp16 true") < said.index("error: --fp16: ")
