"""Diverse beam search and contrastive search against transformers' own, where transformers still has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

from rlhf_hw.evaluation.decoding import LastPositions, contrastive_search, diverse_beam_search
from rlhf_hw.models.positions import SelectedLogits

PROMPT = [1, 17, 44, 9, 30]
END = {2}


def last_positions(model: Any, width: int | None = None) -> LastPositions:
    return LastPositions(model, 0, (lambda longest: longest) if width is None else (lambda _: width))


def generated(model: Any, **options: Any) -> list[list[int]]:
    """What transformers writes after the prompt, up to the first end token."""
    config = GenerationConfig(pad_token_id=0, eos_token_id=sorted(END), bos_token_id=1, **options)
    ids = torch.tensor([PROMPT])
    rows = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    answers = [row[len(PROMPT) :].tolist() for row in rows]
    return [row[: row.index(2) + 1] if 2 in row else row for row in answers]


@pytest.mark.parametrize(("beams", "answers"), [(1, 1), (3, 1), (4, 4)])
def test_one_group_is_beam_search(
    architecture: str, make_model: Callable[..., Any], beams: int, answers: int
) -> None:
    model = make_model(architecture)
    ours = diverse_beam_search(
        last_positions(model),
        PROMPT,
        beams=beams,
        groups=1,
        diversity_penalty=1.0,
        max_new_tokens=12,
        end_ids=END,
        answers=answers,
    )
    assert ours == generated(
        model, num_beams=beams, num_return_sequences=answers, max_new_tokens=12, do_sample=False
    )


def test_groups_are_those_of_transformers(architecture: str, make_model: Callable[..., Any]) -> None:
    if not hasattr(GenerationMixin, "_group_beam_search"):
        pytest.skip("this transformers has no diverse beam search to compare with")
    model = make_model(architecture)
    options = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "num_return_sequences": 6}
    ours = diverse_beam_search(
        last_positions(model),
        PROMPT,
        beams=6,
        groups=3,
        diversity_penalty=0.7,
        max_new_tokens=12,
        end_ids=END,
        answers=6,
    )
    assert ours == generated(model, **options, max_new_tokens=12, do_sample=False)


def test_a_penalty_makes_each_group_begin_with_another_token(make_model: Callable[..., Any]) -> None:
    at = last_positions(make_model("llama"))
    options: dict[str, Any] = {"beams": 4, "groups": 4, "max_new_tokens": 3, "end_ids": (), "answers": 4}
    alike = diverse_beam_search(at, PROMPT, diversity_penalty=0.0, **options)
    assert len({tuple(answer) for answer in alike}) == 1
    apart = diverse_beam_search(at, PROMPT, diversity_penalty=1e3, **options)
    assert len({answer[0] for answer in apart}) == 4


@pytest.mark.parametrize(("top_k", "alpha"), [(4, 0.6), (6, 0.3), (3, 0.0)])
def test_contrastive_search_is_that_of_transformers(
    architecture: str, make_model: Callable[..., Any], top_k: int, alpha: float
) -> None:
    model = make_model(architecture)
    ours = contrastive_search(
        last_positions(model), PROMPT, top_k=top_k, penalty_alpha=alpha, max_new_tokens=12, end_ids=END
    )
    if alpha == 0:  # then it is greedy decoding
        assert [ours] == generated(model, max_new_tokens=12, do_sample=False)
    elif hasattr(GenerationMixin, "_contrastive_search"):
        assert [ours] == generated(model, top_k=top_k, penalty_alpha=alpha, max_new_tokens=12)
    else:
        assert len(ours) == 12 or ours[-1] in END


def test_padding_to_a_fixed_width_changes_nothing(architecture: str, make_model: Callable[..., Any]) -> None:
    model = make_model(architecture)
    options: dict[str, Any] = {"max_new_tokens": 8, "end_ids": END}
    for write in (
        lambda at: contrastive_search(at, PROMPT, top_k=4, penalty_alpha=0.6, **options),
        lambda at: diverse_beam_search(at, PROMPT, beams=4, groups=2, diversity_penalty=1.0, **options),
    ):
        assert write(last_positions(model, width=24)) == write(last_positions(model))


def test_contrastive_choice_by_hand() -> None:
    """Two candidates: the likelier one repeats the direction of the prompt, the other is at a right angle to it."""

    class TwoTokens:
        def everywhere(self, text: list[int]) -> SelectedLogits:
            return SelectedLogits(torch.tensor([[math.log(0.7), math.log(0.3)]]), torch.tensor([[1.0, 0.0]]))

        def __call__(self, texts: list[list[int]]) -> SelectedLogits:
            states = [[2.0, 0.0] if text[-1] == 0 else [0.0, 3.0] for text in texts]
            return SelectedLogits(torch.zeros(len(texts), 2), torch.tensor(states))

    # alpha .6: .4 * .7 - .6 * 1 = -.32 against .4 * .3 - 0 = .12; alpha .1: .63 - .1 = .53 against .27
    for alpha, token in ((0.6, 1), (0.1, 0)):
        assert contrastive_search(
            TwoTokens(),
            [5],
            top_k=2,
            penalty_alpha=alpha,
            max_new_tokens=1,
            end_ids=(),  # type: ignore[arg-type]
        ) == [token]
