"""PPO: what it converges to, what its first step is, and what its brakes leave alone."""

import copy
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import word_tokenizer
from tiny_runs import ppo_settings, ppo_trainer, roles, weights
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from backends.shapes import RolloutShapes
from rlhf_hw.errors import UserError
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.rollout.engine import Rollout
from rlhf_hw.trainers.ppo import steps_per_update, updates_in


def logged(trainer: Any) -> list[dict[str, float]]:
    """The log lines of training."""
    return [row for row in trainer.state.log_history if "loss" in row]


# --- what it finds ---------------------------------------------------------------------------------------------


def test_ppo_finds_the_optimum_of_a_bandit(tmp_path: Path) -> None:
    """One prompt, answers of one token, a reward a token: the best policy is softmax(log reference + reward / beta).

    (Korbak et al. 2022, arXiv 2205.11275: the maximiser of reward minus beta KL.)
    """
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=12, max_position_embeddings=16, **size))
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    rewards = torch.linspace(-1, 1, 12)
    settings = ppo_settings(
        batch_size=256,
        mini_batch_size=64,
        ppo_epochs=4,
        steps=256 * 40,
        output_max_length=1,
        init_kl_coef=0.3,
    )

    def reward(rollout: Rollout, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        return rewards[[answer[0] for answer in rollout.response_ids()]]

    trainer = ppo_trainer(
        tmp_path,
        ActorCritic(policy, None, reference),
        settings,
        reward,
        [{"input_ids": [1, 5], "prompt": "x"}],
        learning_rate=6e-3,
        lr_scheduler_type="linear",
    )
    trainer.train()
    with torch.no_grad():
        found, start = (
            model(torch.tensor([[1, 5]])).logits[0, -1].log_softmax(0) for model in (policy, reference)
        )
    best = (start + rewards / settings.init_kl_coef).log_softmax(0)

    def objective(logp: torch.Tensor) -> float:
        return float((logp.exp() * (rewards - settings.init_kl_coef * (logp - start))).sum())

    assert (found.exp() - best.exp()).abs().max() < 0.05
    assert objective(best) - objective(found) < 0.01
    assert objective(best) - objective(start) > 0.3
    assert logged(trainer)[-1]["objective/rlhf_reward"] == pytest.approx(objective(found), abs=0.05)


@pytest.mark.parametrize("separate", [False, True])
def test_the_reward_rises_with_lora(tmp_path: Path, separate: bool) -> None:
    settings = ppo_settings(
        batch_size=32, mini_batch_size=16, steps=32 * 20, init_kl_coef=0.0, output_max_length=3
    )
    trainer = ppo_trainer(tmp_path, roles(adapter=True, separate=separate), settings, learning_rate=0.05)
    trainer.train()
    scores = [row["objective/scores"] for row in logged(trainer)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1


# --- the first update ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_minibatch_has_no_kl_and_ratio_one(
    tmp_path: Path, adapter: bool, architecture: str, temperature: float
) -> None:
    settings = ppo_settings(ppo_epochs=1, mini_batch_size=8, steps=8, temperature=temperature)
    trainer = ppo_trainer(tmp_path, roles(architecture, adapter=adapter, temperature=temperature), settings)
    trainer.train()
    (first,) = logged(trainer)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["policy/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/approxkl"] == pytest.approx(0, abs=1e-8)
    assert first["policy/clipfrac"] == 0
    assert first["objective/non_score_reward"] == pytest.approx(0, abs=1e-5)
    assert first["value/mean"] == 0
    assert first["objective/rlhf_reward"] == pytest.approx(first["objective/scores"], abs=1e-5)


def test_a_log_line_says_where_the_run_is(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, roles(adapter=True))
    trainer.train()
    lines = logged(trainer)
    assert [line["ppo/update"] for line in lines] == [1, 2, 3, 4]
    assert [line["ppo/episodes"] for line in lines] == [8, 16, 24, 32]
    for line in lines:
        assert line["ppo/early_stopped"] == line["ppo/skipped_minibatches"] == 0
        phases = [line[f"time/{phase}"] for phase in ("rollout", "score", "forward", "advantage", "optimise")]
        assert line["time/total"] == pytest.approx(sum(phases))
        assert line["speed/samples_per_second"] == pytest.approx(8 / line["time/total"], rel=1e-3)
        assert (
            1
            <= line["response/length_min"]
            <= line["response/length_mean"]
            <= line["response/length_max"]
            <= 6
        )
        assert all(math.isfinite(value) for value in line.values())


def test_every_answer_is_learnt_from_once_an_epoch_in_a_new_order(tmp_path: Path) -> None:
    settings = ppo_settings(batch_size=12, mini_batch_size=2, ppo_epochs=3)
    trainer = ppo_trainer(tmp_path, roles(adapter=True), settings, gradient_accumulation_steps=2)
    trainer._begin_update(0)
    epochs = []
    for epoch in range(3):
        steps = [trainer._rows_of_step(trainer.experience, 0, 3 * epoch + step) for step in range(3)]
        assert all(len(micro) == 2 for step in steps for micro in step)
        epochs.append([[row for micro in step for row in micro] for step in steps])
        assert sorted(row for step in epochs[-1] for row in step) == list(range(12))
    assert epochs[0] != epochs[1] != epochs[2]
    lengths = trainer.experience.lengths()
    for epoch in range(3):
        tokens = [int(lengths[rows].sum()) for rows in epochs[epoch]]
        assert trainer.items_of_step[3 * epoch : 3 * epoch + 3].tolist() == tokens


def test_samples_are_handed_over_as_text(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, roles(adapter=True))
    seen: list[tuple[int, list[dict[str, Any]]]] = []
    trainer.on_samples = lambda update, samples: seen.append((update, samples))
    trainer.train()
    assert [update for update, _ in seen] == [1, 2, 3, 4]
    prompts = {row["prompt"] for row in trainer.train_dataset}
    for _, samples in seen:
        assert len(samples) == 8
        for sample in samples:
            assert sample["prompt"] in prompts
            assert set(sample["response"].split()) <= set(word_tokenizer().get_vocab())


def test_steps_are_answers_of_all_processes_rounded_up_to_updates() -> None:
    settings = ppo_settings(batch_size=8, mini_batch_size=2, ppo_epochs=3, steps=33)
    assert [updates_in(settings, world) for world in (1, 2, 4, 8)] == [5, 3, 2, 1]
    assert [steps_per_update(settings, accumulation) for accumulation in (1, 2, 4)] == [12, 6, 3]


def test_evaluation_answers_held_out_prompts_the_same_way_every_time(tmp_path: Path) -> None:
    model = roles(adapter=True)
    trainer = ppo_trainer(tmp_path, model)
    before = weights(model)
    one, two = trainer.evaluate(), trainer.evaluate()
    for name in ("eval_scores", "eval_kl", "eval_length", "eval_eos_rate"):
        assert one[name] == two[name]
    assert one["eval_kl"] == pytest.approx(0, abs=1e-5)
    assert 1 <= one["eval_length"] <= 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_evaluating_between_updates_changes_no_update(tmp_path: Path) -> None:
    plain = ppo_trainer(tmp_path / "1", roles(adapter=True))
    watched = ppo_trainer(tmp_path / "2", roles(adapter=True), eval_strategy="steps", eval_steps=4)
    plain.train()
    watched.train()
    assert len([row for row in watched.state.log_history if "eval_scores" in row]) == 4
    for name, tensor in weights(plain.model).items():
        assert torch.equal(weights(watched.model)[name], tensor), name


# --- the brakes ------------------------------------------------------------------------------------------------


def test_an_update_that_moved_too_far_ends_after_its_epoch(tmp_path: Path) -> None:
    """Its remaining steps change no weight: no gradient, no momentum, no weight decay."""
    settings = ppo_settings(ppo_epochs=3, steps=16, early_stopping=True, target_kl=1e-6)
    options: dict[str, Any] = {"learning_rate": 0.05, "weight_decay": 0.5, "lr_scheduler_type": "constant"}
    trainer = ppo_trainer(tmp_path, roles(), settings, logging_steps=1, **options)
    history: list[dict[str, torch.Tensor]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            history.append(weights(trainer.model))

    trainer.add_callback(Watch())
    trainer.train()
    moved = [
        any(not torch.equal(one[name], other[name]) for name in one)
        for one, other in itertools.pairwise(history)
    ]
    # two updates of three epochs of two steps: the steps of the first epoch move the weights, no others do
    assert moved == [True, False, False, False, False, True, True, False, False, False, False]
    lines = logged(trainer)
    assert [line["ppo/early_stopped"] for line in lines if "ppo/early_stopped" in line] == [1, 1]
    assert [line["step"] for line in lines if "policy/loss" in line] == [1, 2, 7, 8]


def test_an_update_within_its_bounds_runs_to_the_end(tmp_path: Path) -> None:
    """Early stopping that never acts leaves the very weights that no early stopping leaves."""
    found = []
    for early_stopping in (False, True):
        settings = ppo_settings(early_stopping=early_stopping, target_kl=1e6)
        trainer = ppo_trainer(tmp_path, roles(adapter=True), settings)
        trainer.train()
        assert all(line["ppo/early_stopped"] == 0 for line in logged(trainer))
        found.append(weights(trainer.model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_early_stopping_with_loss_scaling_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ppo_trainer(tmp_path, roles(adapter=True))
    trainer.args.fp16 = True
    with pytest.raises(UserError, match=r"--early_stopping.*--fp16"):
        type(trainer)(
            model=roles(adapter=True),
            args=trainer.args,
            train_dataset=trainer.train_dataset,
            settings=ppo_settings(early_stopping=True),
            engine=None,
            scorer=None,
            shapes=RolloutShapes(),
            synchronize=None,
        )


@pytest.mark.parametrize("jump", [5.0, 200.0])
def test_a_minibatch_whose_ratio_exploded_gives_no_gradient(tmp_path: Path, jump: float) -> None:
    """Also where the ratio overflows: exp(200) is infinite in fp32."""
    trainer = ppo_trainer(tmp_path, roles(separate=True), ppo_settings(mini_batch_size=8))
    trainer._begin_update(0)
    batch = trainer.experience.minibatch(range(8), RolloutShapes())
    batch["old_logprobs"] = batch["old_logprobs"] - jump
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(8.0))
    loss.backward()
    assert loss == 0
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)
    assert trainer.averages.flush(trainer.accelerator)["ppo/skipped_minibatches"] == 1


def test_a_minibatch_below_the_threshold_is_learnt_from(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, roles(separate=True), ppo_settings(mini_batch_size=8))
    trainer._begin_update(0)
    batch = trainer.experience.minibatch(range(8), RolloutShapes())
    batch["old_logprobs"] = batch["old_logprobs"] - math.log(9.0)
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(8.0)).backward()
    assert any(p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


def test_the_adaptive_weight_follows_the_kl(tmp_path: Path) -> None:
    """Ziegler et al. 2019, section 2.2: by the relative error, at most 20%, times answers over horizon."""
    settings = ppo_settings(adap_kl_ctrl=True, kl_target=0.05, kl_horizon=80, steps=48, init_kl_coef=0.1)
    trainer = ppo_trainer(tmp_path, roles(adapter=True), settings, learning_rate=0.05)
    trainer.train()
    expected, directions = 0.1, set()
    for line in logged(trainer):
        assert line["objective/kl_coef"] == pytest.approx(expected, rel=1e-4)
        error = min(max(line["objective/kl"] / 0.05 - 1, -0.2), 0.2)
        directions.add(error > 0)
        expected *= 1 + error * 8 / 80
    assert directions == {True, False}
