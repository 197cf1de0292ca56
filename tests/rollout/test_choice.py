"""Which engine a run gets, and that it is said."""

from __future__ import annotations

from typing import Any

import peft
import pytest
from tiny_models import tiny_model
from transformers import MambaConfig, MambaForCausalLM

import backends
from backends.base import BackendError
from backends.hpu import HPUBackend
from backends.shapes import RolloutShapes
from rlhf_hw.rollout.choice import choose_engine
from rlhf_hw.rollout.compact import CompactEngine
from rlhf_hw.rollout.generate import GenerateEngine


def chosen(name: str, policy: Any, tokenizer: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    cpu = backends.resolve("cpu")
    return choose_engine(name, cpu, policy, tokenizer, RolloutShapes(), say=said.append), said


def test_a_cpu_takes_compact_and_does_as_it_is_told(word_tokenizer: Any) -> None:
    for name, kind in (("auto", CompactEngine), ("compact", CompactEngine), ("generate", GenerateEngine)):
        engine, said = chosen(name, tiny_model(), word_tokenizer)
        assert type(engine) is kind
        assert said[0].startswith(f"rollout engine: {'generate' if kind is GenerateEngine else 'compact'} (")


def test_models_that_compact_cannot_run_are_answered_by_generate(word_tokenizer: Any) -> None:
    prompt_tuning = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=32)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1))
    for policy, reason in (
        (peft.get_peft_model(tiny_model(), prompt_tuning), "virtual tokens"),
        (mamba, "MambaForCausalLM keeps more of the past"),
    ):
        for name in ("auto", "compact"):
            engine, said = chosen(name, policy, word_tokenizer)
            assert type(engine) is GenerateEngine
            assert "generate (not compact: " in said[0]
            assert reason in said[0]


def test_a_gaudi_refuses_shapes_that_change() -> None:
    assert HPUBackend().rollout_engine().value == "generate"
    with pytest.raises(BackendError, match="--rollout_engine compact: its shapes change"):
        HPUBackend().decoding_options()
