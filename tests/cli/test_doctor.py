"""`rlhf-hw doctor` on this machine: what it says is true, complete and safe to publish."""

import getpass
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_hw.cli.doctor import BackendState, Clash, Diagnosis, diagnose, print_tables

ROOT = Path(__file__).parents[2]
SECRET = "hf_doctorMustNotShowThis"


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlhf_hw.cli.doctor", *words],
        cwd=ROOT,
        env={**os.environ, "HF_TOKEN": SECRET, "WANDB_API_KEY": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def as_json() -> dict:
    done = doctor("--json")
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["can_train"] else 1), done.stderr
    return found


@pytest.fixture(scope="module")
def as_text() -> str:
    return doctor().stdout


def test_json_has_every_section(as_json):
    assert {name: type(value) for name, value in as_json.items()} == {
        "machine": dict,
        "python": str,
        "packages": dict,
        "torch": dict,
        "tokens": dict,
        "backends": dict,
        "clashes": list,
        "launch": dict,
        "can_train": bool,
    }
    assert as_json["machine"]["cores"] >= 1
    assert as_json["machine"]["memory_bytes"] > 2**28
    assert all(set(clash) == {"found", "reason", "cure"} for clash in as_json["clashes"])


def test_versions_are_those_installed(as_json):
    for name in ("torch", "transformers", "trl", "accelerate", "peft", "datasets"):
        assert as_json["packages"][name] == importlib.metadata.version(name)
    assert as_json["torch"]["version"] == torch.__version__
    assert as_json["torch"]["cuda"] == torch.version.cuda


def test_each_backend_gives_its_reason(as_json):
    assert as_json["backends"]["cpu"]["ok"] is True
    assert as_json["backends"]["cuda"]["ok"] is torch.cuda.is_available()
    assert all(state["reason"] for state in as_json["backends"].values())


def test_the_launch_command_is_shown(as_json, as_text):
    assert as_json["launch"]["command"].endswith("-m rlhf_hw.cli.sft")
    assert as_json["launch"]["command"] in as_text


def test_no_token_user_or_home_is_shown(as_json, as_text):
    assert as_json["tokens"] == {"HF_TOKEN": "set", "WANDB_API_KEY": "not set"}
    for output in (json.dumps(as_json), as_text):
        assert SECRET not in output
        assert str(Path.home()) not in output
        assert sys.prefix not in output
        assert getpass.getuser() not in output.split()


def test_text_in_a_pipe_has_a_line_per_fact_and_no_escapes(as_json, as_text):
    assert "\x1b" not in as_text
    lines = [line.split() for line in as_text.splitlines()]
    for name, version in as_json["packages"].items():
        assert [name, *(version or "not installed").split()] in [
            line[: 1 + len((version or "n i").split())] for line in lines
        ]


def test_a_clash_alone_means_training_is_broken():
    healthy = diagnose({})
    cpu = {"cpu": BackendState(True, "2 cores")}
    parts = {
        name: getattr(healthy, name)
        for name in ("machine", "python", "packages", "torch", "tokens", "launch")
    }
    assert Diagnosis(**parts, backends=cpu, clashes=[]).can_train
    assert not Diagnosis(**parts, backends=cpu, clashes=[Clash("a 1 with b 2", "why", "how")]).can_train
    assert not Diagnosis(**parts, backends={"cpu": BackendState(False, "none")}, clashes=[]).can_train


def test_a_clash_is_shown_with_its_cure(capsys):
    healthy = diagnose({})
    parts = {
        name: getattr(healthy, name)
        for name in ("machine", "python", "packages", "torch", "tokens", "launch")
    }
    print_tables(
        Diagnosis(**parts, backends={}, clashes=[Clash("a 1 with b 2", "a needs b>3", "pip install b")])
    )
    assert "a 1 with b 2  a needs b>3. Cure: pip install b" in capsys.readouterr().out
