"""Rollouts on `hpu`, of static shapes, go through the suite of every rollout engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_rollouts_on_hpu_pass_the_conformance_suite() -> None:
    """In a process of its own, since optimum-habana patches transformers for good."""
    environment = {
        **os.environ,
        "CONFORMANCE_DEVICE": "hpu",
        "PT_HPU_LAZY_MODE": "0",
        "HPU_EMULATOR_QUIET": "1",
    }
    suite = ROOT / "tests" / "rollout" / "test_conformance.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(suite)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
