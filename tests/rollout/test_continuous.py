"""What concerns continuous batching alone. On the Gaudi stack there is none: `test_choice.py` holds what is said there."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import decoder
from engines import ENGINES
from tiny_roles import shared_roles

from rlhf_hw.compat.continuous_batching import why_no_continuous_batching
from rlhf_hw.errors import UserError
from rlhf_hw.rollout.engine import Sampling

pytestmark = pytest.mark.skipif(
    why_no_continuous_batching() is not None,
    reason="continuous batching: " + str(why_no_continuous_batching()),
)

PROMPTS = [[5, 9, 13], [7], [11, 30, 31, 40, 41, 42], [8, 8], list(range(4, 24)), [9, 5] * 4, [50], [60, 61]]
SOME_END = frozenset(range(80, 96))


def drawn(kind: str, model: Any, tokenizer: Any, how: Sampling, **options: Any) -> list[list[int]]:
    return (
        ENGINES[kind](tokenizer, **options).generate(model, PROMPTS, how, range(len(PROMPTS))).response_ids()
    )


def test_the_next_prompt_takes_the_place_of_an_ended_row(word_tokenizer: Any) -> None:
    """Two rows at a time answer all prompts in about half of what one after the other would take."""
    model, how = decoder("llama"), Sampling(24, temperature=0.7, end_tokens=SOME_END)
    asked: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: asked.append(len(inputs["logits_indices"])), with_kwargs=True
    )
    answers = drawn("continuous", model, word_tokenizer, how, batch_size=2)
    steps = sum(map(len, answers))
    assert len({len(answer) for answer in answers}) > 3
    assert max(asked) == 2
    assert len(asked) <= steps / 2 + max(map(len, answers)) + sum(len(prompt) // 2 for prompt in PROMPTS)


def test_under_autocast_the_cache_is_of_its_type(
    word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_hw.rollout import continuous

    caches = watched_caches(monkeypatch, continuous)
    model, how = decoder("llama"), Sampling(12, min_new_tokens=12)
    with torch.autocast("cpu", torch.bfloat16):
        first = drawn("continuous", model, word_tokenizer, how)
        assert drawn("continuous", model, word_tokenizer, how) == first
    assert [dtype for _, dtype in caches] == [torch.bfloat16] * 2
    assert first != drawn("continuous", model, word_tokenizer, how)


def watched_caches(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[tuple[Any, torch.dtype]]:
    """(weak reference to the cache's storage, its dtype) of each rollout from now on."""
    found: list[tuple[Any, torch.dtype]] = []

    class Watched(module.ContinuousBatchingManager):  # type: ignore[misc, name-defined]
        def warmup(self) -> None:
            super().warmup()
            cache = self.batch_processor.cache
            found.append((weakref.ref(cache.cache_tensor), cache.dtype))

    monkeypatch.setattr(module, "ContinuousBatchingManager", Watched)
    return found


def test_nothing_is_left_of_a_rollout(word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither cache nor manager nor another attention; a prompt that cannot be answered leaves nothing either."""
    from rlhf_hw.rollout import continuous

    model = decoder("llama")
    before = (dict(vars(model)), model.config.to_dict(), model.config._attn_implementation)
    caches = watched_caches(monkeypatch, continuous)
    drawn("continuous", model, word_tokenizer, Sampling(12))
    hook = model.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the decoder broke"):
        drawn("continuous", model, word_tokenizer, Sampling(12))
    hook.remove()
    gc.collect()
    assert [cache() for cache, _ in caches] == [None, None]
    assert (dict(vars(model)), model.config.to_dict(), model.config._attn_implementation) == before


def fail(*_: Any) -> None:
    raise RuntimeError("the decoder broke")


def test_roles_on_one_base_answer_each_for_itself(word_tokenizer: Any, tmp_path: Path) -> None:
    roles = shared_roles(tmp_path)
    policy, how = roles.roles.policy, Sampling(12, temperature=0.0)
    for adapters in (roles.base.acting_now, ()):
        with roles.base.acting(adapters):
            assert drawn("continuous", policy, word_tokenizer, how) == drawn(
                "generate", policy, word_tokenizer, how
            )
    with roles.base.acting(()):
        base = drawn("continuous", policy, word_tokenizer, how)
    assert base != drawn("continuous", policy, word_tokenizer, how)


def test_what_does_not_fit_into_memory_is_one_line(
    word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import cache

    monkeypatch.setattr(cache, "get_device_and_memory_breakdown", lambda: ("cpu", 4096, 0, 0))
    with pytest.raises(UserError, match=r"keys and values of 8 rows of 32 tokens do not fit into memory"):
        drawn("continuous", decoder("llama"), word_tokenizer, Sampling(12))
