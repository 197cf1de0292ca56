"""Roles as adapters of one base: each computes what a model of its own would, and nothing of one reaches another."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from tiny_roles import ROLES, SharedRoles, shared_roles

from rlhf_hw.models.adapter_files import Chain, not_plain_lora, not_the_same_weights
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.shared_base import POLICY, VALUE, SharedBase

IDS = torch.tensor([[5, 9, 30, 41, 7, 66], [8, 8, 17, 90, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
ANSWERS = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]).bool()


def alone(directory: Path, architecture: str, labels: int | None = None) -> Any:
    """An adapter directory as plain PEFT loads it on a base of its own."""
    return peft.PeftModel.from_pretrained(tiny_model(architecture, labels=labels), directory).eval()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_role_computes_what_peft_alone_computes(architecture: str, tmp_path: Path) -> None:
    made = shared_roles(tmp_path, architecture)
    roles = made.roles.eval()
    found = roles(IDS, MASK, ANSWERS)
    reference = roles.reference_logprobs(IDS, MASK, ANSWERS)
    assert torch.equal(found.logprobs, reference), "the policy begins as the reference"
    plain = alone(made.sft, architecture)(IDS, attention_mask=MASK).logits.log_softmax(-1)
    expected = plain[:, :-1].gather(-1, IDS[:, 1:, None]).squeeze(-1)[ANSWERS[:, 1:]]
    torch.testing.assert_close(reference, expected, rtol=1e-4, atol=1e-4)
    scores = RewardModel(alone(made.reward_model, architecture, labels=1))(IDS, MASK)
    torch.testing.assert_close(made.reward(IDS, MASK), scores, rtol=1e-4, atol=1e-4)
    assert roles.critic is not None
    torch.testing.assert_close(roles.critic(IDS, MASK), scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy_and_value_are_written_as_ordinary_peft_directories(architecture: str, tmp_path: Path) -> None:
    made = shared_roles(tmp_path, architecture)
    roles = made.roles.eval()
    for weight in [*roles.policy_parameters(), *roles.value_parameters()]:
        weight.add_(0.05 * torch.randn_like(weight))
    roles.save_pretrained(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["critic"]
    policy = alone(tmp_path / "out", architecture)
    logits = roles.policy(IDS, attention_mask=MASK).logits
    torch.testing.assert_close(policy(IDS, attention_mask=MASK).logits, logits, rtol=1e-4, atol=1e-4)
    critic = RewardModel(alone(tmp_path / "out" / "critic", architecture, labels=1))
    assert roles.critic is not None
    torch.testing.assert_close(critic(IDS, MASK), roles.critic(IDS, MASK), rtol=1e-4, atol=1e-4)
    fresh = shared_roles(tmp_path, architecture)
    fresh.roles.load_weights(tmp_path / "out")
    for (name, one), other in zip(roles.state_dict().items(), fresh.roles.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_role_is_left_also_by_an_exception(tmp_path: Path) -> None:
    base = shared_roles(tmp_path).base
    before = [weight.requires_grad for weight in base.model.parameters()]
    seen = []

    def fail() -> None:
        with base.acting([VALUE]), base.acting([]):
            seen.append(base.acting_now)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [()]
    assert base.acting_now == (POLICY,)
    assert all(layer.active_adapters == [POLICY] for layer in base.layers)
    assert [weight.requires_grad for weight in base.model.parameters()] == before


def test_a_switch_takes_microseconds_whatever_the_number_of_layers(tmp_path: Path) -> None:
    base = shared_roles(tmp_path).base
    times = []
    for _ in range(200):
        start = time.perf_counter()
        with base.acting([VALUE]):
            pass
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 50e-6


def test_frozen_roles_have_no_gradient_and_the_others_only_their_own(tmp_path: Path) -> None:
    made = shared_roles(tmp_path)
    found = made.roles.train()(IDS, MASK, ANSWERS)
    found.values.sum().backward()
    values = {id(weight) for weight in made.roles.value_parameters()}
    policy = {id(weight) for weight in made.roles.policy_parameters()}
    assert not values & policy
    moved = {
        id(weight) for weight in made.roles.parameters() if weight.grad is not None and weight.grad.any()
    }
    assert moved
    assert moved <= values
    made.roles.zero_grad()
    made.roles(IDS, MASK, ANSWERS).logprobs.sum().backward()
    moved = {
        id(weight) for weight in made.roles.parameters() if weight.grad is not None and weight.grad.any()
    }
    assert moved
    assert moved <= policy
    trained = {id(weight) for weight in made.roles.parameters() if weight.requires_grad}
    assert trained == values | policy


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_activations_are_recomputed_by_the_adapters_of_their_forward_pass(
    reentrant: bool, architecture: str, tmp_path: Path
) -> None:
    plain = shared_roles(tmp_path, architecture).roles.train()
    saving = copy.deepcopy(plain)
    saving.policy.enable_input_require_grads()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for roles in (plain, saving):
        found = roles(IDS, MASK, ANSWERS)
        (found.logprobs.sum() + found.values.square().sum()).backward()
    compared = 0
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(other.grad, one.grad, msg=name)
            compared += bool(one.grad is not None and one.grad.any())
    assert compared > 8


def test_a_copy_switches_by_itself(tmp_path: Path) -> None:
    made = shared_roles(tmp_path)
    other = copy.deepcopy(made.roles)
    assert other.base is not None
    with other.base.acting([VALUE]):
        assert made.base.acting_now == (POLICY,)
        assert other.base.layers[0].active_adapters == [VALUE]


@pytest.mark.parametrize("role", ROLES)
def test_a_directory_is_put_on_the_base_once(role: str, tmp_path: Path) -> None:
    made: SharedRoles = shared_roles(tmp_path)
    before = set(made.base.model.peft_config)
    assert made.base.add_frozen(str(getattr(made, role))) in before
    assert set(made.base.model.peft_config) == before


def test_weights_are_the_same_by_path_or_by_content(make_model: Callable[..., Any], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("copy", 0), ("other", 1)):
        make_model(seed=seed).save_pretrained(tmp_path / name)
    make_model("gpt2").save_pretrained(tmp_path / "gpt2")
    one = str(tmp_path / "one")
    assert not_the_same_weights(one, one) is None
    assert not_the_same_weights(one, str(tmp_path / "copy" / ".." / "one")) is None
    assert not_the_same_weights(one, str(tmp_path / "copy")) is None
    assert "other weights" in str(not_the_same_weights(one, str(tmp_path / "other")))
    assert "another config.json" in str(not_the_same_weights(one, str(tmp_path / "gpt2")))
    assert "is not" in str(not_the_same_weights("gpt2", one))


def test_only_plain_lora_shares_a_base(make_model: Callable[..., Any], tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "plain": peft.LoraConfig(task_type="CAUSAL_LM", r=2),
        "biases": peft.LoraConfig(task_type="CAUSAL_LM", r=2, bias="lora_only"),
        "dora": peft.LoraConfig(task_type="CAUSAL_LM", r=2, use_dora=True),
        "head": peft.LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["lm_head"]),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    }
    make_model().save_pretrained(tmp_path / "base")
    found = {}
    for name, config in kinds.items():
        model = make_model()
        model.name_or_path = str(tmp_path / "base")
        peft.get_peft_model(model, config).save_pretrained(tmp_path / name)
        found[name] = not_plain_lora(str(tmp_path / name))
    assert found.pop("plain") is None
    assert "biases" in found.pop("biases")
    assert "not LoRA" in found.pop("prompt")
    assert all("also holds" in reason for reason in found.values())
    assert Chain.of(str(tmp_path / "plain")) == Chain(str(tmp_path / "base"), (str(tmp_path / "plain"),))


def test_tensors_of_another_adapter_are_refused(tmp_path: Path) -> None:
    base: SharedBase = shared_roles(tmp_path).base
    tensors = base.state(POLICY)
    tensors.pop(next(iter(tensors)))
    with pytest.raises(RuntimeError, match="differ in 1 tensors"):
        base.load(VALUE, tensors)
