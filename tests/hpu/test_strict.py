"""PPO asks a Gaudi for nothing that it would leave to its host: no shape from data, no host algorithm, no CPU index."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest
import tiny_materials
from parity import MAIN, result
from parity_runs import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_ppo_runs_where_the_emulator_is_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts, scores, updates and evaluations of five updates."""
    tiny_materials.make(tmp_path)
    monkeypatch.setenv("HPU_EMULATOR_STRICT", "1")
    parity.run(tmp_path, MAIN, ["ppo-lora"])
    found = result(tmp_path, MAIN, "ppo-lora")
    assert len(found["steps"]) == STEPS
    assert len(set(found["answers"])) > 20
