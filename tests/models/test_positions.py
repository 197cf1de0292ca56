"""The head run only where it is needed gives what the whole model gives there."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_hw.models.adapters import adapter_config, attach_adapter
from rlhf_hw.models.positions import logits_at, next_token_positions, packed_attention_mask

LENGTHS = (9, 5, 7)
ADAPTERS = ("none", "lora", "prompt", "prefix", "ptun")


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ragged right-padded rows, and which of their tokens are targets."""
    generator = torch.Generator().manual_seed(1)
    attention_mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        attention_mask[row, :length] = 1
    input_ids = torch.randint(4, 96, attention_mask.shape, generator=generator) * attention_mask
    targets = (torch.rand(attention_mask.shape, generator=generator) < 0.5) & attention_mask.bool()
    targets[:, 0] = False
    return input_ids, attention_mask, targets


def adapted(model: Any, kind: str) -> Any:
    """With an adapter that is no longer neutral, as after some training."""
    if kind == "none":
        return model
    torch.manual_seed(7)
    config = adapter_config(
        kind,
        task_type="CAUSAL_LM",
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules=None,
        all_linear=True,
        num_virtual_tokens=3,
        ptun_hidden_size=16,
        adapter_len=3,
        adapter_layers=1,
    )
    model = attach_adapter(model, config, gradient_checkpointing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_logits_at_positions_are_the_whole_models_logits_there(
    make_model: Callable[..., Any], architecture: str, adapter: str
) -> None:
    model = adapted(make_model(architecture), adapter)
    input_ids, attention_mask, targets = batch()
    where = next_token_positions(targets)
    whole = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -input_ids.shape[1] :]
    found = logits_at(model, where, input_ids=input_ids, attention_mask=attention_mask)
    torch.testing.assert_close(found.logits, whole[where], rtol=0, atol=1e-5)
    assert found.hidden.shape == (int(where.sum()), model.get_output_embeddings().weight.shape[1])


@pytest.mark.parametrize("adapter", ["none", "lora", "prompt"])
def test_gradients_through_the_positions_are_those_through_the_whole_model(
    make_model: Callable[..., Any], architecture: str, adapter: str
) -> None:
    model = adapted(make_model(architecture), adapter)
    other = copy.deepcopy(model)
    input_ids, attention_mask, targets = batch()
    where = next_token_positions(targets)
    found = logits_at(model, where, input_ids=input_ids, attention_mask=attention_mask).logits
    found.log_softmax(-1)[:, 5].sum().backward()
    whole = other(input_ids=input_ids, attention_mask=attention_mask).logits[:, -input_ids.shape[1] :]
    whole[where].log_softmax(-1)[:, 5].sum().backward()
    trained = [
        (p.grad, q.grad)
        for p, q in zip(model.parameters(), other.parameters(), strict=True)
        if p.requires_grad
    ]
    assert trained
    for one, two in trained:
        assert one is not None
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_the_hook_is_gone_afterwards_even_if_the_model_fails(make_model: Callable[..., Any]) -> None:
    model = make_model()
    where = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(IndexError):
        logits_at(model, where, input_ids=torch.full((1, 4), 10_000))
    assert model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.shape == (1, 4, 96)


def test_no_target_gives_no_logits(make_model: Callable[..., Any]) -> None:
    found = logits_at(
        make_model(), torch.zeros(1, 4, dtype=torch.bool), input_ids=torch.ones(1, 4, dtype=torch.long)
    )
    assert found.logits.shape == (0, 96)


def test_the_position_before_a_target_predicts_it() -> None:
    targets = torch.tensor([[False, True, False, True]])
    assert next_token_positions(targets).tolist() == [[True, False, True, False]]


def test_packed_sequences_see_their_own_past_and_nothing_else() -> None:
    mask = packed_attention_mask(torch.tensor([[1, 1, 2, 2, 0]]))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
