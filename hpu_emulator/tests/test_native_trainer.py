"""The stock transformers Trainer drives the emulated device with no help of the vendor's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")


def _has_gaudi_stack() -> bool:
    try:
        return bool(version("optimum-habana"))
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_has_gaudi_stack(), reason="the stack without optimum-habana: requirements-cuda.txt"),
]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Any]:
    def run(processes: int = 1, variables: dict[str, str] | None = None, **request: Any) -> Any:
        program = [str(Path(__file__).parent / "native_training.py"), json.dumps(request)]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), *program]
        environment = {**os.environ, "HPU_EMULATOR_QUIET": "1", "OMP_NUM_THREADS": "1", **(variables or {})}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path
        )
        if done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        answers = [
            json.loads((tmp_path / f"result.rank{rank}.json").read_text()) for rank in range(processes)
        ]
        return answers if processes > 1 else answers[0]

    return run


@pytest.mark.parametrize("lazy", ["1", "0"])
def test_training_and_generation_equal_the_cpus(train, lazy):
    on_hpu = train(max_steps=4, generate=True, variables={"PT_HPU_LAZY_MODE": lazy})
    on_cpu = train(max_steps=4, generate=True, use_cpu=True)
    assert (on_hpu.pop("device"), on_cpu.pop("device")) == ("hpu:0", "cpu")
    assert on_hpu.pop("losses") == pytest.approx(on_cpu.pop("losses"), abs=2e-4)
    assert on_hpu.pop("eval_loss") == pytest.approx(on_cpu.pop("eval_loss"), abs=1e-5)
    assert on_hpu == on_cpu  # the tokens


def test_a_resumed_run_equals_the_uninterrupted_one(train):
    whole = train(max_steps=4, output_dir="whole")
    saving = {"output_dir": "parts", "save_strategy": "steps", "save_steps": 2}
    train(max_steps=2, **saving)
    assert train(max_steps=4, resume="parts/checkpoint-2", **saving) == whole


def test_bf16_and_adapters_train(train):
    half, adapted = train(max_steps=4, bf16=True), train(max_steps=4, lora=True)
    assert half["losses"][0] == pytest.approx(adapted["losses"][0], abs=0.01)
    assert half["losses"] != adapted["losses"]


def test_two_processes_train_as_one_with_twice_the_batch(train):
    one = train(max_steps=4, per_device_train_batch_size=8)
    two = train(processes=2, max_steps=4)
    assert [answer["device"][:3] for answer in two] == ["hpu", "hpu"]
    assert two[0]["eval_loss"] == two[1]["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-4)
