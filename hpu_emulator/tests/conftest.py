"""What the emulator's tests share. They need the emulator installed in the Python that runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# optimum-habana asks the pip on PATH for the plugin's version
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

RunPython = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(torch, "hpu"):
        raise pytest.UsageError(
            "these tests need the emulator: pip install --no-build-isolation ./hpu_emulator"
        )


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Runs a program in a fresh Python, for what is decided when torch is imported.

    `run_python(code, timeout=60, PT_HPU_LAZY_MODE="0")`; a failure of the program fails the test, unless check=False.
    A variable given as None is removed. `processes=2` starts the program under torchrun.
    """

    def run(
        code: str, *, timeout: int = 120, check: bool = True, processes: int = 1, **variables: str | None
    ) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "program.py"
        program.write_text(textwrap.dedent(code))
        environment = dict(os.environ)
        environment.update(
            {"HPU_EMULATOR_QUIET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
        )
        for name, value in variables.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        command = [sys.executable, str(program)]
        if processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            command = [sys.executable, *torchrun, str(program)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=tmp_path
        )
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    return run


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def run_gaudi(tmp_path: Path) -> Callable[..., Any]:
    """Runs requests of gaudi_programs.py in a fresh Python and gives their results; see that file.

    With `processes=2` there is one result per rank. `launcher` may be "torchrun" or "mpirun".
    """
    pytest.importorskip("optimum.habana", reason="needs the Gaudi stack: requirements-hpu.txt")

    def run(
        requests: Any, *, timeout: int = 240, processes: int = 1, launcher: str = "torchrun", **variables: str
    ) -> Any:
        program = [str(Path(__file__).parent / "gaudi_programs.py"), json.dumps(requests)]
        launched = [sys.executable]
        if processes > 1 and launcher == "torchrun":
            launched += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        elif processes > 1:
            launched = [
                "mpirun",
                "--allow-run-as-root",
                "--oversubscribe",
                "-np",
                str(processes),
                sys.executable,
            ]
        environment = {**os.environ, "HPU_EMULATOR_QUIET": "1", "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run(
            [*launched, *program],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            cwd=tmp_path,
        )
        if done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        answers = [
            json.loads((tmp_path / f"result.rank{rank}.json").read_text()) for rank in range(processes)
        ]
        return answers if processes > 1 else answers[0]

    return run
