"""The compact engine draws the tokens of the reference engine, with a cache of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import DECODERS, decoder
from engines import ENGINES, decoders_of

from rlhf_hw.rollout.compact import prefill_parts
from rlhf_hw.rollout.engine import Sampling
from rlhf_hw.rollout.kv_cache import PreallocatedCache

PROMPTS = [
    [5, 9, 13],
    [7],
    [11, 30, 31, 40, 41, 42],
    [8, 8],
    list(range(4, 24)),
    [9, 5] * 4,
    [50],
    [*range(40, 49)],
]
SOME_END = frozenset(range(80, 96))
SETTINGS = [
    Sampling(12, end_tokens=SOME_END),
    Sampling(12, min_new_tokens=4, temperature=1.5, top_k=20, top_p=0.9, end_tokens=SOME_END),
    Sampling(24, temperature=0.7, repetition_ngram=2, end_tokens=SOME_END),
    Sampling(12, min_new_tokens=12, temperature=0.0, repetition_ngram=3),
]


def drawn(kind: str, model: Any, tokenizer: Any, prompts: list[list[int]], how: Sampling) -> list[list[int]]:
    return ENGINES[kind](tokenizer).generate(model, prompts, how, range(len(prompts))).response_ids()


@pytest.mark.parametrize("name", DECODERS)
def test_drawn_answers_are_those_of_the_reference_engine(word_tokenizer: Any, name: str) -> None:
    """With every setting of `Sampling`, and answers that end at different steps."""
    model = decoder(name)
    for how in SETTINGS:
        expected = drawn("generate", model, word_tokenizer, PROMPTS, how)
        assert how.min_new_tokens == 12 or len({len(answer) for answer in expected}) > 2
        for kind in ENGINES.keys() - {"generate", "hpu"}:
            if name in decoders_of(kind):
                assert drawn(kind, model, word_tokenizer, PROMPTS, how) == expected, (kind, how)


def test_the_head_is_given_rows_in_one_piece(word_tokenizer: Any) -> None:
    """Else torch copies its weights for every row that is read at once, on a CPU in bf16."""
    model, pieces = decoder("llama"), []
    model.lm_head.register_forward_hook(lambda _head, args, _out: pieces.append(args[0].is_contiguous()))
    drawn("compact", model, word_tokenizer, PROMPTS, Sampling(4))
    assert pieces
    assert all(pieces)


def test_under_autocast_the_same_shapes_draw_the_same_tokens(word_tokenizer: Any) -> None:
    """The cache is kept in bf16; keys that are rotated in fp32 are cast before they are multiplied anyway."""
    model = decoder("llama")
    prompts = [[i, i + 1, i + 2] for i in range(4, 12)]
    how = Sampling(24, min_new_tokens=24)
    with torch.autocast("cpu", torch.bfloat16):
        expected = drawn("generate", model, word_tokenizer, prompts, how)
        assert drawn("compact-late", model, word_tokenizer, prompts, how) == expected
    cache = PreallocatedCache(1, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
    assert {part.dtype for layer in cache.layers for part in layer.storage or ()} == {torch.bfloat16}
    assert cache.get_seq_length() == 2


@pytest.mark.parametrize("kind", ["compact", "compact-late"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_single_tokens_attend_in_the_precision_that_is_asked_for(
    word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """ "compact" asks for fp32; a model with attention of its own (bloom) keeps it."""
    fused, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watched(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if query.shape[2] < key.shape[2]:  # not the prompts
            seen.add((query.dtype, torch.is_autocast_enabled("cpu")))
        return fused(query, key, *args, **kwargs)

    model = decoder(name)
    before = model.config._attn_implementation
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        drawn(kind, model, word_tokenizer, PROMPTS[:3], Sampling(4, min_new_tokens=4))
    if kind == "compact" and name != "bloom":
        assert seen == {(torch.float32, False)}
    else:
        assert (torch.float32, False) not in seen
    assert model.config._attn_implementation == before


def test_an_ended_row_costs_nothing_more(word_tokenizer: Any) -> None:
    """The decoder sees the rows still going alone, and no column in which none of them has a token."""
    model, seen = decoder("llama"), []
    model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(
            (*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1])
        ),
        with_kwargs=True,
    )
    how = Sampling(24, temperature=0.7, end_tokens=SOME_END)
    answers = drawn("compact", model, word_tokenizer, PROMPTS, how)
    going = [
        [len(p) + step for p, a in zip(PROMPTS, answers, strict=True) if len(a) > step]
        for step in range(1, 24)
    ]
    steps = [(len(lengths), 1, max(lengths)) for lengths in going if lengths]
    assert seen == [(8, 20, 20), *steps]
    assert len({rows for rows, _, _ in steps}) > 3


def test_prompts_are_prefilled_with_those_of_like_length() -> None:
    assert list(prefill_parts([64, 60, 40, 9, 9, 8], 128)) == [(0, 2), (2, 5), (5, 6)]
    assert list(prefill_parts([300, 2, 1], 128)) == [(0, 1), (1, 3)]
