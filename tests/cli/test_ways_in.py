"""Every way to a command reaches the same code: doors, `python -m`, `torchrun -m`, the console command."""

from __future__ import annotations

import importlib
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import losses
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends import resolve
from launchers.hosts import free_port

ROOT = Path(__file__).parents[2]
DOORS = {
    "finetune_clm.py": "rlhf-hw sft",
    "reward_modeling.py": "rlhf-hw reward",
    "rl_training.py": "rlhf-hw ppo",
    "merge_peft_adapter.py": "rlhf-hw merge",
    "chat.py": "rlhf-hw chat",
    "run_inference.py": "rlhf-hw infer",
    "run_eval.py": "rlhf-hw judge",
    "rw_eval.py": "rlhf-hw score",
    "prompt_eval.py": "rlhf-hw compare",
}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_the_command_behind_it(
    door: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [door, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / door), run_name="__main__")
    assert not end.value.code
    assert capsys.readouterr().out.startswith(f"usage: {DOORS[door]}")


def test_the_console_command_is_the_main_function(capsys: pytest.CaptureFixture[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    entry = re.search(r'^rlhf-hw = "([\w.]+):(\w+)"$', project, re.MULTILINE)
    assert entry
    assert getattr(importlib.import_module(entry[1]), entry[2])(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("sft", "reward", "ppo", "merge", "chat", "data", "report", "launch", "doctor"):
        assert f"\n  {name} " in shown


@pytest.mark.slow
def test_python_m_runs_a_command_and_bad_input_is_one_line_on_standard_error(tmp_path: Path) -> None:
    done = start([sys.executable, "-m", "rlhf_hw", "sft", "--model_name_or_path", "./nowhere"], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "rlhf-hw sft: error: --output_dir: required, but not given; see --help\n"


@pytest.mark.slow
def test_two_processes_by_torchrun_m_train_as_one_with_accumulation(
    trained: Callable[..., Path], sft_flags: list[object], workplace: Path
) -> None:
    batches = ["--per_device_train_batch_size", 3]
    one = trained("sft", *sft_flags, *batches, "--gradient_accumulation_steps", 2, output="one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--master_port", str(free_port()), "-m", "rlhf_hw.cli.sft"]
    words = [*torchrun, *map(str, sft_flags), *map(str, batches), "--output_dir", "two"]
    done = start(words, workplace)
    assert done.returncode == 0, done.stderr
    assert losses(workplace / "two") == pytest.approx(losses(one), abs=2e-4)


@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
def test_chat_answers_as_the_model_does_and_remembers_until_told_to_forget(
    adapter: bool,
    run: Callable[..., Any],
    trained: Callable[..., Path],
    sft_flags: list[object],
    text_llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path: Path | str = text_llama_dir
    if adapter:
        path = trained("sft", *sft_flags, output="sft")
        assert (
            run("merge", "--adapter_model_name", path, "--output_name", "m", "--dtype", "float32").status == 0
        )
    said = "Name a colour.\n/help\n\nAnd another.\n/clear\nName a colour.\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    outcome = run("chat", "--path", path, "--device", "cpu", "--temperature", 0, "--max_new_tokens", 5)
    assert outcome.status == 0, outcome.err
    answers = re.findall(r"model> (.*?)\n(?=you>|\(|\Z)", outcome.out, re.DOTALL)
    plain = text_llama_dir if not adapter else Path("m")
    first = answer(plain, "\n\nHuman: Name a colour.\n\nAssistant:")
    second = answer(
        plain,
        f"\n\nHuman: Name a colour.\n\nAssistant: {first.strip()}\n\nHuman: And another.\n\nAssistant:",
    )
    assert [text.strip() for text in answers] == [first.strip(), second.strip(), first.strip()]


def answer(directory: Path, prompt: str) -> str:
    """What plain transformers answers, without chance, in the precision that chat uses."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    precision = resolve("cpu").precision(None, None)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = (
        model.to(precision.frozen_dtype)
        .eval()
        .generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def start(words: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own, in `directory`, that finds the package here."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **own, "HF_HOME": str(directory / "hub")}
    return subprocess.run(
        words, cwd=directory, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_two_models_talk_beside_each_other_and_each_remembers_its_own_answers(
    run: Callable[..., Any], text_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Name a colour.\n"))
    words = ("--path", text_llama_dir, "--compare", text_llama_dir, "--device", "cpu", "--temperature", 0)
    outcome = run("chat", *words, "--max_new_tokens", 5)
    assert outcome.status == 0, outcome.err
    first, second = re.findall(r"(?:first|second)> (.*?)\n(?=second>|you>|\Z)", outcome.out, re.DOTALL)
    assert first == second


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--top_p", "0"], "--top_p: got 0.0"),
        (["--max_new_tokens", "0"], "--max_new_tokens: got 0"),
        (["--compare", "./nowhere"], "--compare: there is no directory ./nowhere"),
        (["--web"], "--web: gradio is not installed; pip install --no-deps -r requirements-web.txt"),
        (["--colour", "blue"], "unrecognized arguments: --colour blue"),
    ],
)
def test_bad_flags_of_chat_are_one_line(
    flags: list[str],
    said: str,
    run: Callable[..., Any],
    text_llama_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlhf_hw.evaluation.page.find_spec", lambda name: None)
    outcome = run("chat", "--path", text_llama_dir, *flags)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert said in outcome.err
