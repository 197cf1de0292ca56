"""Leaving padding out changes nothing but rounding."""

from typing import Any

import peft
import pytest
import torch
from tiny_models import ARCHITECTURES, long_context, tiny_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaAttention

from rlhf_hw.models.positions import logits_at, packed_attention_mask
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.unpadded import leave_padding_out, leaves_padding_out, real_tokens

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
    if family == "mistral":  # two rows are longer than the window
        return AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=4))
    if family == "qwen3":
        return AutoModelForCausalLM.from_config(Qwen3Config(**SIZES))
    return tiny_model(family)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", [*ARCHITECTURES, "mistral", "qwen3"])
def test_logits_and_gradients_are_those_of_the_padded_batch(family: str) -> None:
    ids, mask = batch()
    found = []
    for unpadded in (False, True):
        model = model_of(family)
        if unpadded:
            assert leave_padding_out(model)
        logits, hidden = logits_at(model, mask.bool(), input_ids=ids, attention_mask=mask)
        (logits.square().sum() + hidden.sum()).backward()
        found.append((logits, hidden, gradients(model)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def checkpointed(model: Any, how: str) -> Any:
    """`model` in training, whose layers work their activations out again in the backward pass."""
    model.train()
    if how == "fsdp":  # as accelerate puts it around the layers
        apply_activation_checkpointing(
            model, check_fn=lambda module: isinstance(module, GradientCheckpointingLayer)
        )
    else:
        model.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
        model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("how", ["plain", "reentrant", "fsdp"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral"])
def test_recomputed_activations_are_those_of_the_padded_batch(family: str, how: str) -> None:
    """With two passes over other rows in flight at a time, whose backward passes come when both are done."""
    found = []
    for unpadded in (False, True):
        model = checkpointed(model_of(family), how)
        if unpadded:
            assert leave_padding_out(model)
        ids, mask = batch()
        passes = [
            logits_at(model, rows_mask.bool(), input_ids=rows, attention_mask=rows_mask).logits
            for rows, rows_mask in ((ids, mask), (ids.flip(0)[:3], mask.flip(0)[:3]))
        ]
        assert model.config._attn_implementation == "sdpa"
        (passes[0].square().sum() + passes[1].square().sum()).backward()
        assert model.config._attn_implementation == "sdpa"
        found.append((*passes, gradients(model)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_packed_rows_are_their_sequences(architecture: str) -> None:
    sequence_ids = torch.tensor([[1, 1, 1, 2, 2, 3], [1, 1, 2, 2, 0, 0]])
    position_ids = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 0]])
    ids = torch.randint(4, 96, sequence_ids.shape, generator=torch.Generator().manual_seed(0))
    model, real = tiny_model(architecture), sequence_ids > 0
    dense = {"attention_mask": packed_attention_mask(sequence_ids), "position_ids": position_ids}
    expected = logits_at(model, real, input_ids=ids, **dense).logits
    assert leave_padding_out(model)
    found = logits_at(model, real, input_ids=ids, attention_mask=sequence_ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_real_tokens_keep_rows_apart_that_hold_the_same_number_of_sequences() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 2, 2]])
    real = real_tokens(torch.arange(9).view(3, 3), mask)
    assert real.lengths == [2, 3, 1, 2]
    assert real.input_ids.tolist() == [[0, 1, 3, 4, 5, 6, 7, 8]]
    assert real.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]


@pytest.mark.parametrize("left", [False, True])
def test_scores_are_those_of_the_padded_batch(left: bool) -> None:
    ids, mask = batch()
    if left:
        ids, mask = ids.flip(1), mask.flip(1)
    model = RewardModel(tiny_model(labels=1))
    expected = model(ids, mask), model(ids, mask, every_token=True)[mask.bool()]
    assert leave_padding_out(model.model)
    found = model(ids, mask), model(ids, mask, every_token=True)[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class OwnAttention(LlamaAttention):
    """Someone's attention in a model that calls itself Llama: no row is told from another in it."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.o_proj(self.q_proj(hidden_states).cumsum(dim=1)), None


@pytest.mark.parametrize("how", ["class", "module"])
def test_attention_that_is_not_transformers_own_keeps_its_padding(how: str) -> None:
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    if how == "class":
        attention.__class__ = OwnAttention
    else:
        attention.forward = OwnAttention.forward.__get__(attention)
    assert not leave_padding_out(model)
    linear = tiny_model()
    linear.model.layers[1].self_attn.q_proj.__class__ = type("Quantised", (torch.nn.Linear,), {})
    assert leave_padding_out(linear)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_the_longest_row_decides_stay_those_of_the_padded_batch(kind: str) -> None:
    """Rows laid end to end keep their positions, so none counts as longer."""
    ids, mask = batch()
    found = []
    for unpadded in (False, True):
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES, max_position_embeddings=6, **long_context(kind))
        model = AutoModelForCausalLM.from_config(config)
        if unpadded:
            assert leave_padding_out(model)
        found.append(logits_at(model, mask.bool(), input_ids=ids, attention_mask=mask).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_what_could_change_a_result_keeps_its_padding() -> None:
    model = tiny_model()
    model.config._attn_implementation = "eager"
    assert not leave_padding_out(model)
    model = tiny_model()
    model.config.model_type = "unheard_of"
    assert not leave_padding_out(model)
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", r=4))
    assert leave_padding_out(model)
    assert leaves_padding_out(model)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not leave_padding_out(peft.get_peft_model(tiny_model(), prompts))
