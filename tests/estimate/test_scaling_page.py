"""docs/scaling.md is what its program writes, and its memory is what `rlhf-hw estimate` says now."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    yield scaling
    sys.modules.pop("scaling")


def test_the_page_is_as_generated(scaling: Any) -> None:
    assert scaling.PAGE.read_text() == scaling.page(json.loads(scaling.MEMORY.read_text()))


def test_its_memory_is_what_is_estimated_now(scaling: Any) -> None:
    kept = json.loads(scaling.MEMORY.read_text())["bytes"]
    asked = {name: (flags, processes) for name, flags, processes in scaling.questions()}
    assert kept.keys() <= asked.keys()
    name = "opt-1.3b, SFT, LoRA, 1 card"
    now = scaling.ask(*asked[name])
    assert now == pytest.approx(kept[name], rel=0.01)  # transformers' releases differ a little
