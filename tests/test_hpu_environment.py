"""The Gaudi libraries' mode is settled from the command line, before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_hw.hpu_environment import flag_values, set_lazy_mode


def mode(words: str, **environ: str) -> str | None:
    set_lazy_mode(words.split(), environ)
    return environ.get("PT_HPU_LAZY_MODE")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--device cpu --use_lazy_mode", None),
        ("--use_lazy_mode False", None),
        ("--device hpu --use_lazy_mode", "1"),
        ("--use_habana --use_lazy_mode True", "1"),
        ("--use_habana True --use_lazy_mode=False", "0"),
        ("--device=habana --no_use_lazy_mode", "0"),
        ("--device hpu --hpu_runtime optimum", "1"),
        ("--device hpu --hpu_runtime optimum --torch_compile", "0"),
        ("--device hpu --hpu_runtime native", "0"),
        ("--device hpu --use_lazy_mode False --use_lazy_mode True", "1"),
    ],
)
def test_the_mode_is_what_the_flags_say(words: str, expected: str | None) -> None:
    assert mode(words) == expected


def test_what_the_user_has_set_stays() -> None:
    assert mode("--device hpu --use_lazy_mode", PT_HPU_LAZY_MODE="0") == "0"


def test_a_config_file_counts_and_the_command_line_beats_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("hardware:\n  device: hpu\n  use_lazy_mode: false\nlearning_rate: 0.1\n")
    assert mode(f"--config {path}") == "0"
    assert mode(f"--config {path} --use_lazy_mode True") == "1"
    assert flag_values(["--config", str(path)])["learning_rate"] == "0.1"
    assert mode(f"--device hpu --hpu_runtime native --config {tmp_path / 'none.yaml'}") == "0"


def test_it_is_settled_before_torch_is_imported() -> None:
    program = (
        "import os, sys; sys.argv[1:] = ['--device', 'hpu', '--use_lazy_mode', 'False']\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch': assert os.environ['PT_HPU_LAZY_MODE'] == '0'; print('asked')\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import rlhf_hw.cli.sft\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("asked")


def test_a_launcher_that_made_its_processes_for_gaudi_is_believed() -> None:
    assert mode("--hpu_runtime optimum", RLHF_HW_DEVICE="hpu") == "1"
    assert mode("--device cpu --hpu_runtime optimum", RLHF_HW_DEVICE="hpu") is None
