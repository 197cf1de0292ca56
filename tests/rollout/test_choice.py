"""Which engine a run gets, and that it is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from decoders import decoder
from tiny_models import long_context, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import backends
from backends.base import BackendError
from backends.hpu import HPUBackend
from backends.shapes import RolloutShapes
from rlhf_hw.compat.continuous_batching import why_no_continuous_batching
from rlhf_hw.errors import UserError
from rlhf_hw.rollout.choice import check_engine, choose_engine
from rlhf_hw.rollout.compact import CompactEngine, rope_kinds
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


def test_continuous_batching_is_taken_where_transformers_has_it(word_tokenizer: Any) -> None:
    if why_no_continuous_batching() is None:
        engine, said = chosen("continuous", tiny_model(), word_tokenizer)
        assert (type(engine).__name__, said) == (
            "ContinuousEngine",
            ["rollout engine: continuous (as asked)"],
        )
        for policy, reason in (
            (decoder("bloom"), "nothing is known of BloomForCausalLM over a paged cache"),
            (long_llama("dynamic"), "by the length of the longest row"),
        ):
            engine, said = chosen("continuous", policy, word_tokenizer)
            assert type(engine) is GenerateEngine
            assert said[0].startswith("rollout engine: generate (not continuous: ")
            assert reason in said[0]
    else:
        with pytest.raises(
            UserError, match=r"--rollout_engine continuous: it needs transformers 5.23 or later"
        ):
            chosen("continuous", tiny_model(), word_tokenizer)


class OwnAttention(LlamaAttention):
    """Someone's own, which may keep its past where it likes."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def long_llama(kind: str) -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=96, max_position_embeddings=6, **long_context(kind))
    )


def test_models_that_compact_cannot_run_are_answered_by_generate(word_tokenizer: Any) -> None:
    prompt_tuning = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=32)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1))
    own = tiny_model()
    own.model.layers[1].self_attn.__class__ = OwnAttention
    for policy, reason in (
        (peft.get_peft_model(tiny_model(), prompt_tuning), "virtual tokens"),
        (mamba, "MambaForCausalLM keeps more of the past"),
        (own, "the OwnAttention in LlamaForCausalLM is code of its own"),
        (long_llama("dynamic"), "by the length of the longest row"),
        (long_llama("longrope"), "by the length of the longest row"),
    ):
        for name in ("auto", "compact"):
            engine, said = chosen(name, policy, word_tokenizer)
            assert type(engine) is GenerateEngine
            assert "generate (not compact: " in said[0]
            assert reason in said[0]


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ({}, set()),
        ({"rope_parameters": None, "rope_scaling": None}, set()),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, {"longrope"}),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, {"dynamic"}),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {}}},
            {"yarn"},
        ),
    ],
)
def test_the_kind_of_rotary_embedding_is_read_in_every_spelling(
    said: dict[str, Any], kinds: set[str]
) -> None:
    assert rope_kinds(SimpleNamespace(**said)) == kinds


def test_a_gaudi_refuses_shapes_that_change() -> None:
    assert HPUBackend().rollout_engine().value == "generate"
    for engine in ("compact", "continuous"):
        with pytest.raises(BackendError, match=f"--rollout_engine {engine}: its shapes change"):
            check_engine(engine, HPUBackend())
