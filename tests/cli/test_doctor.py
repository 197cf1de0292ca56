"""`rlhf-hw doctor` on this machine: what it says is true, complete and safe to publish."""

import getpass
import importlib.metadata
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from launchers.machine import this_machine
from rlhf_hw.cli.doctor import BackendState, Clash, Diagnosis, diagnose, print_tables

ROOT = Path(__file__).parents[2]
SECRET = "hf_doctorMustNotShowThis"


EMULATOR = find_spec("habana_torch_plugin_emulator") is not None
OPTIMUM_HABANA = find_spec("optimum") is not None and find_spec("optimum.habana") is not None


def doctor(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlhf_hw.cli.doctor", *words],
        cwd=ROOT,
        env={**os.environ, "HF_TOKEN": SECRET, "WANDB_API_KEY": "", **environ},
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
        "gaudi": dict,
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
        for name in ("machine", "python", "packages", "torch", "tokens", "gaudi", "launch")
    }
    assert Diagnosis(**parts, backends=cpu, clashes=[]).can_train
    assert not Diagnosis(**parts, backends=cpu, clashes=[Clash("a 1 with b 2", "why", "how")]).can_train
    assert not Diagnosis(**parts, backends={"cpu": BackendState(False, "none")}, clashes=[]).can_train


def test_a_clash_is_shown_with_its_cure(capsys):
    healthy = diagnose({})
    parts = {
        name: getattr(healthy, name)
        for name in ("machine", "python", "packages", "torch", "tokens", "gaudi", "launch")
    }
    print_tables(
        Diagnosis(**parts, backends={}, clashes=[Clash("a 1 with b 2", "a needs b>3", "pip install b")])
    )
    assert "a 1 with b 2  a needs b>3. Cure: pip install b" in capsys.readouterr().out


def pretend_installed(folder: Path, name: str, version: str) -> None:
    """Metadata of a distribution, as pip leaves it: what a package is known by before it is imported."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def with_gaudi_cards(root: Path, count: int) -> None:
    for number in range(count):
        for path, text in (("dev/accel/accel", ""), ("sys/class/accel/accel", "0x1da3")):
            node = root / f"{path}{number}"
            node = node / "device/vendor" if text else node
            node.parent.mkdir(parents=True, exist_ok=True)
            node.write_text(text)


@pytest.mark.skipif(not EMULATOR, reason="the emulator is not installed")
def test_an_emulated_gaudi_is_told_with_the_runtime_and_mode_of_a_run():
    found = json.loads(doctor("--json").stdout)["gaudi"]
    assert found["cards"] == "none visible"
    assert "--device auto never does" in found["emulator"]
    assert found["runtime"].split()[0] == ("optimum" if OPTIMUM_HABANA else "native")
    text = doctor(PT_HPU_LAZY_MODE="0").stdout
    assert "eager (PT_HPU_LAZY_MODE=0)" in text
    assert "0 (as the environment says)" in text


def test_real_gaudis_are_told_where_torch_knows_nothing_of_them(tmp_path, monkeypatch):
    with_gaudi_cards(tmp_path, 8)
    monkeypatch.setattr(
        "rlhf_hw.cli.doctor.this_machine", lambda environ: this_machine(environ, root=tmp_path)
    )
    monkeypatch.delenv("PT_HPU_LAZY_MODE", raising=False)
    found = diagnose({})
    assert found.gaudi["cards"] == "8 visible"
    assert found.gaudi["mode"].startswith("lazy" if OPTIMUM_HABANA else "eager")
    assert found.gaudi["PT_HPU_LAZY_MODE"] == f"{int(OPTIMUM_HABANA)} (not set; --device hpu sets it)"
    assert [clash.found for clash in found.clashes] == ["8 Gaudi card(s) without habana-torch-plugin"]


@pytest.mark.skipif(not EMULATOR, reason="the emulator is not installed")
def test_the_emulator_beside_the_real_plugin_is_told_though_torch_cannot_be_imported(tmp_path):
    pretend_installed(tmp_path, "habana-torch-plugin", "1.24.0.5")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    done = doctor("--json", PYTHONPATH=path, TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["torch"] is None
    assert found["gaudi"]["habana-torch-plugin"] == "1.24.0.5"
    assert any(
        clash["found"].startswith("habana-torch-plugin 1.24.0.5 with habana-torch-plugin-emulator")
        for clash in found["clashes"]
    )
