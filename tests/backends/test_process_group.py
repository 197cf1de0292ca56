"""Leaving the other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.process_group import leave_process_group


def test_leaving_where_there_is_no_group_does_nothing() -> None:
    leave_process_group()


@pytest.mark.slow
def test_two_processes_part_without_waiting_for_each_other_for_ever(tmp_path: Path) -> None:
    """Forty times over; with `destroy_process_group` alone this does not come to its end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("leaves_groups.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, program, str(tmp_path), str(rank), "40"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert outputs == ["left\n", "left\n"]
    assert [process.returncode for process in processes] == [0, 0]
