"""What training puts around a model is taken off again, without asking the disk."""

import builtins
from typing import Any

import peft
import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from rlhf_hw.models.wrapping import unwrap


def test_wrappers_come_off_in_any_order_and_adapters_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_model()
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"]))
    wrapped = {
        "nothing": lambda model: model,
        "parallel": nn.DataParallel,
        "compiled": torch.compile,
        "compiled inside": lambda model: nn.DataParallel(torch.compile(model)),
        "compiled outside": lambda model: torch.compile(nn.DataParallel(model)),
    }
    made = {name: (wrap(plain), wrap(adapted)) for name, wrap in wrapped.items()}

    def no_opening(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("a file is opened")

    monkeypatch.setattr(builtins, "open", no_opening)
    monkeypatch.setattr("io.open", no_opening)
    for name, (one, other) in made.items():
        assert unwrap(one) is plain, name
        assert unwrap(other) is adapted, name
