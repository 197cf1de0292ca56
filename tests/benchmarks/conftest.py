"""The benchmark's modules can be imported as its own program imports them, and leave no trace in the package."""

import importlib
import sys
from pathlib import Path

import pytest

from rlhf_hw.compat.continuous_batching import why_no_continuous_batching

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS / "speed"))
sys.path.append(str(BENCHMARKS))  # memory.py, whose row stands in the same table


@pytest.fixture
def drawing_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """How tokens are drawn, which the benchmark replaces in every engine, is put back: all that draw are imported first."""
    engines = ["compact", "generate", "sampling"]
    if why_no_continuous_batching() is None:
        engines.append("continuous")
    for engine in engines:
        module = importlib.import_module(f"rlhf_hw.rollout.{engine}")
        for name in ("uniforms", "sample_tokens"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
