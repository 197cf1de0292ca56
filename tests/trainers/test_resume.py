"""A run that was killed and resumed ends with the very weights of a run that was not."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import ppo_settings, ppo_trainer, reward_trainer, roles, sft_trainer, weights, with_lora
from transformers import TrainingArguments

from rlhf_hw.errors import UserError
from rlhf_hw.models.adapters import adapter_config, attach_adapter
from rlhf_hw.trainers.ppo import STATE_FILE


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def trained_and_resumed(
    tmp_path: Path, make_trainer: Callable[..., Any], model: torch.nn.Module, **settings: Any
) -> tuple[Any, Any]:
    """The trainer of a whole run, and one that began at its checkpoint in the middle, from other weights."""
    whole = make_trainer(tmp_path / "run", copy.deepcopy(model), save_strategy="steps", **settings)
    start = weights(whole.model)
    whole.train()
    assert any(not torch.equal(start[name], tensor) for name, tensor in weights(whole.model).items())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()  # what is not read back would show
    resumed = make_trainer(tmp_path / "resumed", model, save_strategy="steps", **settings)
    torch.manual_seed(77)  # another stream of random numbers, as another process may have
    middle = settings["save_steps"]
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{middle}"))
    return whole, resumed


def test_sft_resumes_to_the_same_weights(tmp_path: Path, architecture: str) -> None:
    """Dropout's random numbers included."""
    model = tiny_model(architecture, dropout=0.1)
    whole, resumed = trained_and_resumed(tmp_path, sft_trainer, model, save_steps=2)
    assert_same(weights(resumed.model), weights(whole.model))
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]


@pytest.mark.parametrize("save_steps", [2, 3])
def test_sft_resumes_at_the_end_of_an_epoch_and_inside_a_later_one(tmp_path: Path, save_steps: int) -> None:
    options = {"save_steps": save_steps, "max_steps": 6, "gradient_accumulation_steps": 2}
    whole, resumed = trained_and_resumed(tmp_path, sft_trainer, tiny_model("gpt2", dropout=0.1), **options)
    assert whole.state.epoch == 3
    assert_same(weights(resumed.model), weights(whole.model))


def test_sft_grouped_by_length_resumes_to_the_same_weights(tmp_path: Path) -> None:
    accepted = TrainingArguments.__dataclass_fields__
    by_length = {"group_by_length": True}
    if "group_by_length" not in accepted:
        by_length = {"train_sampling_strategy": "group_by_length"}
    options = {"save_steps": 3, "max_steps": 6, "gradient_accumulation_steps": 2, **by_length}
    whole, resumed = trained_and_resumed(tmp_path, sft_trainer, tiny_model(), **options)
    assert_same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix", "ptun", "llama_adapter"])
def test_sft_with_any_adapter_resumes_to_the_same_weights(tmp_path: Path, kind: str) -> None:
    config = adapter_config(
        kind,
        task_type="CAUSAL_LM",
        rank=4,
        alpha=8,
        dropout=0.1,
        target_modules=None,
        all_linear=False,
        num_virtual_tokens=3,
        ptun_hidden_size=16,
        adapter_len=3,
        adapter_layers=1,
    )
    torch.manual_seed(4)
    model = attach_adapter(tiny_model(), config, gradient_checkpointing=False)
    whole, resumed = trained_and_resumed(tmp_path, sft_trainer, model, save_steps=2)
    assert_same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize(
    ("architecture", "lora"), [("llama", True), ("llama", False), ("gpt2", True), ("opt", False)]
)
def test_a_reward_model_resumes_to_the_same_weights(tmp_path: Path, architecture: str, lora: bool) -> None:
    model = tiny_model(architecture, labels=1, dropout=0.1)
    model = with_lora(model, "SEQ_CLS") if lora else model
    whole, resumed = trained_and_resumed(tmp_path, reward_trainer, model, save_steps=2)
    assert_same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_ppo_resumes_to_the_same_weights(tmp_path: Path, adapter: bool, separate: bool) -> None:
    """With everything that one update leaves to the next: the adaptive KL weight and the running score moments."""
    settings = ppo_settings(
        adap_kl_ctrl=True, kl_target=0.1, kl_horizon=50, use_score_scaling=True, use_score_norm=True
    )

    def make(directory: Path, model: Any, **overrides: Any) -> Any:
        return ppo_trainer(directory, model, settings, **overrides)

    model = roles(adapter=adapter, separate=separate)
    whole, resumed = trained_and_resumed(tmp_path, make, model, save_steps=8, lr_scheduler_type="linear")
    assert whole.state.global_step == 16
    assert_same(weights(resumed.model), weights(whole.model))
    assert resumed.maker.state_dict() == whole.maker.state_dict()
    assert whole.maker.kl_controller.kl_coef != settings.init_kl_coef
    for name in ("objective/kl_coef", "objective/scores_shaped", "ppo/episodes"):
        assert resumed.state.log_history[-2][name] == whole.state.log_history[-2][name]


def test_a_checkpoint_of_ppo_is_complete_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a checkpoint is written: whatever has trainer_state.json, by which it counts, has all the rest."""
    from transformers import TrainerState

    trainer = ppo_trainer(tmp_path, roles(adapter=True), save_strategy="steps", save_steps=4, max_steps=4)
    found = []

    def seen(self: Any, path: str) -> None:
        found.append(json.loads((Path(path).parent / STATE_FILE).read_text()))

    monkeypatch.setattr(TrainerState, "save_to_json", seen)
    trainer.train()
    assert len(found) == 1
    assert found[0].items() >= trainer.maker.state_dict().items()


def test_resuming_from_the_last_checkpoint_needs_no_name(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    with pytest.raises(UserError, match="no checkpoint in"):
        ppo_trainer(tmp_path, roles(adapter=True), **options).train(resume_from_checkpoint=True)
    whole = ppo_trainer(tmp_path, roles(adapter=True), **options)
    whole.train()
    resumed = ppo_trainer(tmp_path, roles(adapter=True), **{**options, "max_steps": 8})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert resumed.state.log_history[0] == whole.state.log_history[0]  # its times too


def test_resuming_inside_an_update_is_refused(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, roles(adapter=True), save_strategy="steps", save_steps=2, max_steps=4)
    trainer.train()
    other = ppo_trainer(tmp_path / "other", roles(adapter=True))
    with pytest.raises(
        UserError, match=r"--resume_from_checkpoint: step 2 lies inside a PPO update of 4 steps"
    ):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ppo_epochs": 1}, "4 optimizer steps an update, this one has 2"),
        ({"batch_size": 16, "mini_batch_size": 8}, "8 answers an update, this one has 16"),
    ],
)
def test_resuming_with_other_updates_is_refused(
    tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    """Their steps would be taken for those of another update, and prompts come twice or never."""
    trainer = ppo_trainer(tmp_path, roles(adapter=True), save_strategy="steps", save_steps=4, max_steps=4)
    trainer.train()
    other = ppo_trainer(tmp_path / "other", roles(adapter=True), ppo_settings(**changed))
    with pytest.raises(UserError, match=f"--resume_from_checkpoint: .*{message}"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path, stage: str) -> None:
    """The second of three is made the best by a metric that falls away from it."""
    options: dict[str, Any] = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_rank",
        "greater_is_better": True,
    }
    if stage == "ppo":
        options |= {"save_steps": 4, "eval_steps": 4, "max_steps": 12}
        trainer = ppo_trainer(tmp_path, roles(adapter=True), **options)
    else:
        options |= {"save_steps": 1, "eval_steps": 1, "max_steps": 3}
        if stage == "sft":
            trainer = sft_trainer(tmp_path, with_lora(tiny_model()), **options)
        else:
            trainer = reward_trainer(tmp_path, tiny_model(labels=1), **options)
    ranks = iter([0.0, 1.0, 0.5])
    states = []

    def rank(_prediction: Any) -> dict[str, float]:
        states.append(weights(trainer.model))
        return {"rank": next(ranks)}

    trainer.compute_metrics = rank
    trainer.train()
    assert len(states) == 3
    assert_same(weights(trainer.model), states[1])
