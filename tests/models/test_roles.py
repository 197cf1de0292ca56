"""Policy, value and reference: equal at the start, kept to the bit, and plain transformers models on disk."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_hw.algorithms.kl import NEEDS_LOGITS, per_token_kl
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.roles import CRITIC_DIRECTORY, ActorCritic, token_logprobs
from rlhf_hw.models.wrapping import remove_dropout

LENGTHS = ((3, 5), (2, 1), (4, 6))  # (prompt, answer)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask, response_mask) [B, T], right padded."""
    width = max(prompt + answer for prompt, answer in LENGTHS)
    generator = torch.Generator().manual_seed(2)
    columns = torch.arange(width)
    prompts, answers = torch.tensor(LENGTHS).T[:, :, None]
    attention_mask = (columns < prompts + answers).long()
    response_mask = (columns >= prompts) & attention_mask.bool()
    return (
        torch.randint(4, 96, attention_mask.shape, generator=generator) * attention_mask,
        attention_mask,
        response_mask,
    )


def adapted(model: Any, task: str) -> Any:
    torch.manual_seed(11)
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4))


def make_roles(make_model: Callable[..., Any], architecture: str, shape: str) -> ActorCritic:
    """`shape`: "lora" or "full", with "+critic" for a separate value model."""
    lora = shape.startswith("lora")
    policy, critic = make_model(architecture), None
    if shape.endswith("+critic"):
        classifier = make_model(architecture, labels=1, seed=5)
        critic = RewardModel(adapted(classifier, "SEQ_CLS") if lora else classifier)
    reference = None if lora else make_model(architecture).requires_grad_(False)
    return ActorCritic(adapted(policy, "CAUSAL_LM") if lora else policy, critic, reference)


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every trained weight."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


SHAPES = ("lora", "lora+critic", "full", "full+critic")


@pytest.mark.parametrize("shape", SHAPES)
def test_policy_equals_reference_before_training(
    make_model: Callable[..., Any], architecture: str, shape: str
) -> None:
    roles = make_roles(make_model, architecture, shape).eval()
    found, reference = roles(*batch()), roles.reference_logprobs(*batch())
    for name in ("kl", "k2", "k3", "abs"):
        assert per_token_kl(name, found.logprobs.detach(), reference).abs().max() == 0
    for name in NEEDS_LOGITS:
        assert roles.divergence(*batch(), estimator=name).abs().max() < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_stays_when_the_policy_moves(
    make_model: Callable[..., Any], architecture: str, shape: str
) -> None:
    roles = make_roles(make_model, architecture, shape).eval()
    before = roles.reference_logprobs(*batch())
    shake(roles)
    assert torch.equal(roles.reference_logprobs(*batch()), before)
    assert not torch.equal(roles(*batch()).logprobs, before)
    assert roles.divergence(*batch(), estimator="full").min() > 0


@pytest.mark.parametrize("shape", ["lora", "full"])
def test_values_on_the_trunk_start_at_zero(
    make_model: Callable[..., Any], architecture: str, shape: str
) -> None:
    assert not make_roles(make_model, architecture, shape)(*batch()).values.any()


def test_the_full_divergence_is_the_expectation_of_the_per_token_one(make_model: Callable[..., Any]) -> None:
    """Summed over all next tokens, weighted by the policy."""
    roles = make_roles(make_model, "llama", "full").eval()
    shake(roles)
    prompt = [5, 9, 13]
    ids = torch.tensor([[*prompt, token] for token in range(96)])
    mask = torch.ones_like(ids)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, -1] = True
    with torch.no_grad():
        logprobs = roles(ids, mask, answer).logprobs
    expected = (logprobs.exp() * (logprobs - roles.reference_logprobs(ids, mask, answer))).sum()
    found = roles.divergence(ids, mask, answer, estimator="full")
    torch.testing.assert_close(found, expected.expand(96), rtol=1e-4, atol=1e-5)


def test_log_probabilities_are_of_the_sampling_temperature(
    make_model: Callable[..., Any], architecture: str
) -> None:
    ids, mask, answers = batch()
    model = make_model(architecture)
    whole = (model(ids, attention_mask=mask).logits / 0.7).log_softmax(-1)
    expected = whole[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[answers[:, 1:]]
    torch.testing.assert_close(token_logprobs(model, ids, mask, answers, 0.7), expected, rtol=1e-4, atol=1e-4)
    roles = ActorCritic(model, None, make_model(architecture), temperature=0.7)
    torch.testing.assert_close(roles(ids, mask, answers).logprobs, expected, rtol=1e-4, atol=1e-4)


def test_the_value_of_a_state_knows_nothing_of_the_token_drawn_in_it(make_model: Callable[..., Any]) -> None:
    roles = make_roles(make_model, "llama", "full+critic").eval()
    ids, mask, answers = batch()
    changed = ids.clone()
    changed[0, LENGTHS[0][0] + 2] = 50  # the third token of the first answer
    one, other = roles(ids, mask, answers).values, roles(changed, mask, answers).values
    torch.testing.assert_close(one[:3], other[:3], rtol=1e-5, atol=1e-5)
    assert (one[3:5] != other[3:5]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_is_loaded_bit_for_bit(
    make_model: Callable[..., Any], architecture: str, shape: str, tmp_path: Path
) -> None:
    trained = make_roles(make_model, architecture, shape)
    shake(trained)
    trained.save_pretrained(tmp_path)
    fresh = make_roles(make_model, architecture, shape)
    fresh.load_weights(tmp_path)
    for (name, one), other in zip(trained.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_tied_weights_are_one_after_loading(make_model: Callable[..., Any], tmp_path: Path) -> None:
    trained = make_roles(make_model, "qwen2", "full")
    shake(trained)
    trained.save_pretrained(tmp_path)
    fresh = make_roles(make_model, "qwen2", "full")
    fresh.load_weights(tmp_path)
    policy = fresh.policy
    assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight


def test_sharded_weights_are_loaded(
    make_model: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    from rlhf_hw.models.weights import load_weights_into

    trained = make_model(architecture, seed=3)
    trained.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    fresh = make_model(architecture)
    load_weights_into(fresh, tmp_path)
    for one, other in zip(trained.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_of_another_model_are_refused(make_model: Callable[..., Any], tmp_path: Path) -> None:
    from rlhf_hw.models.weights import load_weights_into

    make_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="do not fit"):
        load_weights_into(make_model("llama"), tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_roles_are_plain_transformers_and_peft_models(
    make_model: Callable[..., Any], architecture: str, shape: str, tmp_path: Path
) -> None:
    roles = make_roles(make_model, architecture, shape).eval()
    shake(roles)
    roles.save_pretrained(tmp_path)
    ids, mask, _ = batch()
    if shape.startswith("lora"):
        policy = peft.PeftModel.from_pretrained(make_model(architecture), tmp_path).eval()
    else:
        policy = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        policy(ids, attention_mask=mask).logits[mask.bool()],
        roles.policy(ids, attention_mask=mask).logits[mask.bool()],
        rtol=1e-5,
        atol=1e-5,
    )
    if roles.critic is not None:
        folder = tmp_path / CRITIC_DIRECTORY
        if shape.startswith("lora"):
            critic = peft.PeftModel.from_pretrained(make_model(architecture, labels=1, seed=5), folder)
        else:
            critic = AutoModelForSequenceClassification.from_pretrained(folder)
        expected = roles.critic(ids, mask)
        torch.testing.assert_close(RewardModel(critic).eval()(ids, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_recomputing_activations_changes_no_gradient(
    make_model: Callable[..., Any], architecture: str, shape: str
) -> None:
    plain = make_roles(make_model, architecture, shape).train()
    shake(plain)
    saving = copy.deepcopy(plain)
    if shape.startswith("lora"):
        for model in (saving.policy, *([saving.critic.model] if saving.critic else [])):
            model.enable_input_require_grads()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    for roles in (plain, saving):
        found = roles(*batch())
        (found.logprobs.sum() + found.values.square().sum()).backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if one.requires_grad and one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize("labels", [None, 1])
def test_without_dropout_training_predicts_what_evaluation_predicts(
    make_model: Callable[..., Any], architecture: str, labels: int | None
) -> None:
    ids, mask, _ = batch()
    model = peft.get_peft_model(
        make_model(architecture, dropout=0.1, labels=labels),
        peft.LoraConfig(r=4, lora_dropout=0.1, init_lora_weights=False),
    )
    expected = model.eval()(ids, attention_mask=mask).logits
    assert not torch.allclose(model.train()(ids, attention_mask=mask).logits, expected, atol=1e-3)
    remove_dropout(model)
    torch.testing.assert_close(model.train()(ids, attention_mask=mask).logits, expected)


def test_every_decoder_in_transformers_can_be_rid_of_dropout() -> None:
    """Small models of other families, each with all its dropout probabilities at one half."""
    from transformers import (
        AutoModelForCausalLM,
        BloomConfig,
        GPTNeoConfig,
        GPTNeoXConfig,
        MptConfig,
        PhiConfig,
    )

    size = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = (
        BloomConfig(
            vocab_size=96, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.5, attention_dropout=0.5
        ),
        GPTNeoXConfig(**size, intermediate_size=32, hidden_dropout=0.5, attention_dropout=0.5),
        GPTNeoConfig(
            vocab_size=96,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global"], 2]],
            embed_dropout=0.5,
            attention_dropout=0.5,
            resid_dropout=0.5,
        ),
        MptConfig(vocab_size=96, d_model=32, n_layers=2, n_heads=4, resid_pdrop=0.5),
        PhiConfig(**size, intermediate_size=32, embd_pdrop=0.5, resid_pdrop=0.5, attention_dropout=0.5),
    )
    ids, mask, _ = batch()
    for config in configs:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        expected = model(ids, attention_mask=mask).logits
        remove_dropout(model)
        torch.testing.assert_close(
            model.train()(ids, attention_mask=mask).logits, expected, msg=config.model_type
        )


def test_a_whole_policy_needs_a_reference(make_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="reference"):
        ActorCritic(make_model(), None, None)


def test_the_reference_is_neither_trained_nor_saved(make_model: Callable[..., Any]) -> None:
    roles = make_roles(make_model, "llama", "full")
    assert not any(
        "reference" in name for name in itertools.chain(roles.state_dict(), dict(roles.named_modules()))
    )
