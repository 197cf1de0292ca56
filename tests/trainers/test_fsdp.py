"""Which parts of a model FSDP gathers at once, and steps that all processes must agree on."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import roles, with_lora

from rlhf_hw.arguments.fsdp import FSDPPlan
from rlhf_hw.errors import UserError
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.trainers.fsdp import (
    load_optimizer,
    save_optimizer,
    share_out,
    taking_whole_weights,
    units_of,
    whole_state,
)
from rlhf_hw.trainers.optimizer_steps import FiniteStepsOnly


def classes(model: torch.nn.Module, **plan: Any) -> list[str]:
    return [type(unit).__name__ for unit in units_of(model, FSDPPlan(**plan))]


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("llama", "LlamaDecoderLayer"), ("gpt2", "GPT2Block"), ("opt", "OPTDecoderLayer")],
)
def test_a_unit_is_a_decoder_layer_of_every_model_inside(architecture: str, layer: str) -> None:
    assert classes(tiny_model(architecture)) == [layer] * 2
    assert classes(with_lora(tiny_model(architecture))) == [layer] * 2
    assert classes(RewardModel(tiny_model(architecture, labels=1))) == [layer] * 2
    assert classes(roles(architecture, separate=True)) == [layer] * 4


def test_units_by_size_hold_that_many_weights_and_none_that_is_tied() -> None:
    model = tiny_model("qwen2")
    units = units_of(model, FSDPPlan(units="size", min_num_params=2000))
    held = [weight for unit in units for weight in unit.parameters()]
    tied = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is tied
    assert units
    assert all(sum(weight.numel() for weight in unit.parameters()) >= 2000 for unit in units)
    assert all(weight is not tied for weight in held)


def test_the_whole_model_may_be_one_unit() -> None:
    assert classes(tiny_model(), units="nothing") == []


def test_a_class_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match="the model has no GPT2Block; its layers are LlamaDecoderLayer"):
        classes(tiny_model(), layer_classes=("GPT2Block",))


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_whole_weights_are_taken_after_an_evaluation(alone: None) -> None:
    """The root keeps its weights whole after a forward pass that no backward pass follows."""
    model, other = tiny_model(), tiny_model(seed=1)
    share_out(model, FSDPPlan(), torch.device("cpu"))
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    with taking_whole_weights(model):
        model.load_state_dict(other.state_dict())
    torch.testing.assert_close(whole_state(model, kept=True), dict(other.state_dict()), rtol=0, atol=0)


def test_an_optimizer_is_asked_for_only_where_one_was_saved(alone: None, tmp_path: Path) -> None:
    model = tiny_model()
    share_out(model, FSDPPlan(), torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not load_optimizer(model, optimizer, tmp_path)
    (tmp_path / "scheduler.pt").touch()
    with pytest.raises(UserError, match="was not written with --fsdp"):
        load_optimizer(model, optimizer, tmp_path)
    save_optimizer(model, optimizer, tmp_path)
    assert load_optimizer(model, optimizer, tmp_path)


@pytest.mark.parametrize(("others_finite", "taken"), [(True, True), (False, False)])
def test_a_step_is_left_out_where_another_process_has_the_gradient_that_is_no_number(
    others_finite: bool, taken: bool
) -> None:
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=2,
        optimizer_step_was_skipped=False,
        reduce=lambda own: own + float(others_finite),
    )
    steps: list[bool] = []
    callback = FiniteStepsOnly(
        model, accelerator, steps.append, scaled=False, within_backward=False, parts=True
    )
    callback.on_pre_optimizer_step()
    callback.on_optimizer_step()
    assert steps == [taken]
    assert (model.weight.grad is None) is not taken
