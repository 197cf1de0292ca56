"""Collectives, DDP and FSDP on `hccl` with two processes: the cases are in collective_cases.py."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("collective_cases.py")
NAMES = [
    node.name
    for node in ast.parse(PROGRAM.read_text()).body
    if isinstance(node, ast.FunctionDef) and any(getattr(d, "id", "") == "case" for d in node.decorator_list)
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of the two processes found: `ok` or a traceback for each case it reached."""
    folder = tmp_path_factory.mktemp("collectives")
    environment = dict(os.environ)
    environment.update(
        HPU_EMULATOR_DEVICES="2", HPU_EMULATOR_QUIET="1", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo",
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="29555",
    )  # fmt: skip
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(PROGRAM),
                str(rank),
                "2",
                str(folder / "store"),
                str(folder / f"{rank}.json"),
            ],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=150)[0])
        except subprocess.TimeoutExpired:
            process.kill()
            outputs.append("timed out\n" + process.communicate()[0])
    results = []
    for rank in range(2):
        path = folder / f"{rank}.json"
        results.append(json.loads(path.read_text()) if path.exists() else {"": outputs[rank]})
    return results


@pytest.mark.parametrize("name", NAMES)
def test_two_processes(name: str, found: list[dict[str, str]]) -> None:
    for rank, result in enumerate(found):
        text = result.get(name, f"not reached; before it: {list(result.items())[-1]}")
        assert text == "ok", f"rank {rank}: {text}"
