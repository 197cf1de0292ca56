"""PPO with all four roles as adapters of one base: the numbers of separate models, frozen roles to the bit, resumed to the bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import word_tokenizer
from tiny_roles import shared_roles
from tiny_runs import ppo_settings, ppo_trainer, weights

from rlhf_hw.trainers.scoring import RewardModelScorer


def trainer_of(directory: Path, *, apart: bool = False, run: str = "run", **options: Any) -> Any:
    """A trainer whose four roles come from the directories of the stages before."""
    made = shared_roles(directory, apart=apart)
    settings = ppo_settings(
        adap_kl_ctrl=True,
        kl_target=0.1,
        kl_horizon=50,
        use_score_scaling=True,
        **options.pop("settings", {}),
    )
    scorer = RewardModelScorer(made.reward, word_tokenizer())
    trainer = ppo_trainer(directory / run, made.roles, settings, scorer, **options)
    trainer.made = made
    return trainer


def progress(trainer: Any) -> list[dict[str, float]]:
    """The log lines without times."""
    lines = [row for row in trainer.state.log_history if "loss" in row]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))} for row in lines]


def test_one_base_or_one_each_train_alike(tmp_path: Path) -> None:
    """Losses, scores and KL of four updates, and every trained weight."""
    together, apart = trainer_of(tmp_path), trainer_of(tmp_path, apart=True)
    for trainer in (together, apart):
        trainer.train()
    assert len(progress(together)) == 4
    assert progress(together)[-1]["objective/kl"] != 0
    for one, other in zip(progress(together), progress(apart), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for trainer, folder in ((together, "together"), (apart, "apart")):
        trainer.save_model(str(tmp_path / folder))
    for file in ("adapter_model.safetensors", "critic/adapter_model.safetensors"):
        one, other = (load_file(tmp_path / folder / file) for folder in ("together", "apart"))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_frozen_stays_to_the_bit_and_the_optimizer_holds_the_rest(tmp_path: Path) -> None:
    """All roles take turns in every update; averages of the policy's weights are kept beside."""
    trainer = trainer_of(
        tmp_path, settings={"enable_ema": True, "ema_decay": 0.5, "critic_learning_rate": 1e-3}
    )
    model = trainer.model
    before = weights(model)
    trainer.train()
    mine = {id(weight) for weight in [*model.policy_parameters(), *model.value_parameters()]}
    held = [id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]]
    assert sorted(held) == sorted(mine)
    names = dict(model.named_parameters())
    moved = {
        id(names[name]) for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])
    }
    assert moved == mine
    trainer.save_model()
    policy, average = (
        load_file(trainer.args.output_dir + f"/{f}adapter_model.safetensors") for f in ("", "actor_ema/")
    )
    assert policy.keys() == average.keys()
    assert any(not torch.equal(policy[name], average[name]) for name in policy)


def test_a_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path, save_strategy="steps", save_steps=8)
    whole.train()
    resumed = trainer_of(tmp_path, run="resumed", save_strategy="steps", save_steps=8)
    for parameter in resumed.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()  # what is not read back would show
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    expected = weights(whole.model)
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, expected[name]), name
    assert progress(resumed)[-1] == progress(whole)[-1]


def test_recomputed_activations_train_alike(tmp_path: Path) -> None:
    plain = trainer_of(tmp_path)
    saving = trainer_of(
        tmp_path,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    saving.model.policy.enable_input_require_grads()
    start = copy.deepcopy(weights(plain.model))
    for trainer in (plain, saving):
        trainer.train()
    expected = weights(plain.model)
    assert any(not torch.equal(start[name], tensor) for name, tensor in expected.items())
    for name, tensor in weights(saving.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
