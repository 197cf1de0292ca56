"""Rows padded on the right need no mask: what stands behind a token is never seen by it."""

from typing import Any

import peft
import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from rlhf_hw.models.positions import Positions, logits_at
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.right_padded import leave_masks_out, leaves_masks_out, without_mask
from rlhf_hw.models.wrapping import trunk

LENGTHS = (3, 7, 1, 5)
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.25,
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(4, 96, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids, mask


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    configs = {"mistral": MistralConfig(**SIZES, sliding_window=None), "qwen3": Qwen3Config(**SIZES)}
    return AutoModelForCausalLM.from_config(configs[family]) if family in configs else tiny_model(family)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", [*ARCHITECTURES, "mistral", "qwen3"])
def test_logits_and_gradients_are_those_under_a_mask(family: str, recomputed: bool) -> None:
    ids, mask = batch()
    where = Positions(*mask.nonzero(as_tuple=True))
    found = []
    for masked in (True, False):
        model = model_of(family).train()
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        assert leave_masks_out(model) is not hasattr(trunk(model), "_update_causal_mask")
        if masked or not leaves_masks_out(model):
            logits = logits_at(model, where, input_ids=ids, attention_mask=mask).logits
        else:
            with without_mask(model):
                logits = logits_at(model, where, input_ids=ids).logits
        logits.square().sum().backward()
        found.append((logits, gradients(model)))
        assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_reward_model_scores_right_padded_rows_alike(lora: bool) -> None:
    ids, mask = batch()
    classifier = tiny_model(labels=1)
    if lora:
        classifier = peft.get_peft_model(classifier, peft.LoraConfig(task_type="SEQ_CLS", r=4))
    model = RewardModel(classifier)
    assert leave_masks_out(model.model)
    assert leaves_masks_out(model.inner)
    for every_token in (False, True):
        options = {"every_token": every_token}
        expected, found = model(ids, mask, **options), model(ids, mask, right_padded=True, **options)
        real = mask.bool() if every_token else slice(None)
        torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


def test_models_that_look_through_a_window_keep_their_mask() -> None:
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=4))
    assert not leave_masks_out(model)
    assert not leaves_masks_out(model)


def test_other_attention_keeps_its_mask() -> None:
    model = tiny_model()
    model.config._attn_implementation = "eager"
    assert not leave_masks_out(model)
