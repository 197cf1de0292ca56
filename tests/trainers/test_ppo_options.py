"""What PPO can do beside PPO: average weights, model text, cut answers, and keep away from what is no number."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import tiny_model
from tiny_runs import ppo_settings, ppo_trainer, roles, text_blocks, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from backends.shapes import RolloutShapes, StaticBuckets
from rlhf_hw.errors import UserError
from rlhf_hw.trainers.by_hand import UpdatesByHand
from rlhf_hw.trainers.ema import PolicyAverage
from rlhf_hw.trainers.experience import SCORES_EMA_DECAY, token_ids
from rlhf_hw.trainers.ptx import UnsupervisedBatches

ROLLOUT = RolloutShapes(StaticBuckets((8,)), StaticBuckets((14,)), answer_width=6)


def logged(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def part(model: Any, name: str) -> dict[str, torch.Tensor]:
    """The weights whose names begin so."""
    return {key: tensor for key, tensor in weights(model).items() if key.startswith(name)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- steps along gradients that are no numbers --------------------------------------------------------------------


class SpoilsGradient(TrainerCallback):
    """Puts `value` into one gradient of the critic in the given optimizer step, and notes all weights around it."""

    def __init__(self, model: Any, step: int, value: float) -> None:
        self.model, self.step, self.value = model, step, value
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}
        self.count = 0

    def spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return gradient * self.value if self.count == self.step else gradient

    def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step - 1:
            self.before = weights(self.model)

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            self.after = weights(self.model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_whose_critic_gradient_is_not_finite_leaves_policy_and_critic_alone(
    tmp_path: Path, value: float, max_grad_norm: float, precision: str
) -> None:
    """Momentum and weight decay included; it is counted, and the steps after it are taken."""
    model = roles(separate=True)
    trainer = ppo_trainer(
        tmp_path,
        model,
        ppo_settings(steps=16),
        max_grad_norm=max_grad_norm,
        weight_decay=0.1,
        bf16=precision == "bf16",
    )
    spoiler = SpoilsGradient(model, step=2, value=value)
    next(iter(model.critic.parameters())).register_hook(spoiler.spoil)
    trainer.add_callback(spoiler)
    trainer.train()
    assert spoiler.before
    assert same(spoiler.before, spoiler.after)
    assert not same(spoiler.after, weights(model))
    assert all(tensor.isfinite().all() for tensor in weights(model).values())
    assert [line["ppo/skipped_steps"] for line in logged(trainer)] == [1, 0]


# --- the critic's own optimizer settings --------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
def test_the_critic_has_a_learning_rate_and_weight_decay_of_its_own(tmp_path: Path, separate: bool) -> None:
    settings = ppo_settings(critic_learning_rate=3e-4, critic_weight_decay=0.3)
    model = roles(separate=separate)
    trainer = ppo_trainer(tmp_path, model, settings, weight_decay=0.01)
    trainer.create_optimizer()
    critic = set(model.value_parameters())
    biases = {weight for name, weight in model.named_parameters() if "norm" in name or name.endswith("bias")}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for weight in group["params"]:
            seen.add(weight)
            assert group["lr"] == (3e-4 if weight in critic else 1e-2)
            assert group["weight_decay"] == (0.0 if weight in biases else 0.3 if weight in critic else 0.01)
    assert seen == {weight for weight in model.parameters() if weight.requires_grad}


def test_a_critic_that_does_not_learn_leaves_the_policy_to_learn_alone(tmp_path: Path) -> None:
    settings = ppo_settings(steps=8, critic_learning_rate=0.0, critic_weight_decay=0.0)
    model = roles(adapter=True, separate=True)
    before = weights(model)
    ppo_trainer(tmp_path, model, settings).train()
    assert same(part(model, "critic."), {k: v for k, v in before.items() if k.startswith("critic.")})
    assert not same(part(model, "policy."), {k: v for k, v in before.items() if k.startswith("policy.")})


# --- the average of the weights -----------------------------------------------------------------------------------


def test_the_average_by_hand() -> None:
    """From 1, with decay 0.9: after weights 2 and 4 it is 0.9 + 0.2 = 1.1, then 0.99 + 0.4 = 1.39."""
    weight = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        weight.weight.fill_(1.0)
        average = PolicyAverage(weight, 0.9)
        for value in (2.0, 4.0):
            weight.weight.fill_(value)
            average.update()
    with average.in_place():
        assert weight.weight.item() == pytest.approx(1.39)
    assert weight.weight.item() == 4.0


@pytest.mark.parametrize("adapter", [False, True])
def test_the_averaged_policy_is_saved_loads_and_resumes_to_the_bit(tmp_path: Path, adapter: bool) -> None:
    settings = ppo_settings(enable_ema=True, ema_decay=0.8, steps=32)
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 8, "unsupervised": text_blocks()}
    start = roles(adapter=adapter)
    whole = ppo_trainer(tmp_path / "run", copy.deepcopy(start), settings, **options)
    history = [weights(whole.model.policy)]
    note = TrainerCallback()
    note.on_step_end = lambda *_, **__: history.append(weights(whole.model.policy))  # type: ignore[method-assign]
    whole.add_callback(note)
    whole.train()
    whole.save_model()
    expected = history[0]
    for step in history[1:]:
        expected = {name: 0.8 * tensor + 0.2 * step[name] for name, tensor in expected.items()}
    saved = tmp_path / "run" / "actor_ema"
    loaded = (
        PeftModel.from_pretrained(tiny_model(), str(saved))
        if adapter
        else AutoModelForCausalLM.from_pretrained(saved)
    )
    found = weights(loaded)
    assert any(not torch.allclose(found[name], history[-1][name]) for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)

    resumed = ppo_trainer(tmp_path / "again", start, settings, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    for one, other in zip(resumed.ema._averages, whole.ema._averages, strict=True):
        assert torch.equal(one, other)
    assert same(weights(resumed.model), weights(whole.model))


def test_resuming_an_average_that_was_never_kept_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    ppo_trainer(tmp_path / "1", roles(adapter=True), **options).train()
    other = ppo_trainer(tmp_path / "2", roles(adapter=True), ppo_settings(enable_ema=True))
    with pytest.raises(UserError, match=r"--enable_ema: .*has no actor_ema"):
        other.train(resume_from_checkpoint=str(tmp_path / "1" / "checkpoint-4"))


# --- unsupervised text --------------------------------------------------------------------------------------------

PLAIN = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


@pytest.mark.parametrize("shapes", [None, ROLLOUT], ids=["varying", "static"])
def test_text_adds_its_weighted_mean_loss_to_the_step(tmp_path: Path, shapes: Any) -> None:
    """One step of plain gradient descent: what text adds to it is -coef times the gradient of its mean loss."""
    settings = ppo_settings(mini_batch_size=4, steps=8, ppo_epochs=1, unsup_coef=0.5)
    options: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": 1, "shapes": shapes, **PLAIN}
    blocks = text_blocks(8)
    without, beside = roles(), roles()
    ppo_trainer(tmp_path / "1", without, settings, **options).train()
    trainer = ppo_trainer(tmp_path / "2", beside, settings, unsupervised=blocks, **options)
    trainer.train()

    model = tiny_model()
    ids = torch.tensor(blocks["input_ids"])  # eight blocks are what one step takes: all of them
    logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    loss = -logp.mean()
    loss.backward()
    for name, weight in model.named_parameters():
        added = beside.policy.state_dict()[name] - without.policy.state_dict()[name]
        torch.testing.assert_close(added, -0.5 * weight.grad, rtol=2e-3, atol=2e-5)
    (line,) = logged(trainer)
    assert line["unsupervised/loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_text_is_dealt_out_alike_over_micro_batches_processes_and_resumed_runs() -> None:
    def of(step: int, rows: int, micro: int, rank: int, world: int) -> list[list[int]]:
        batches = UnsupervisedBatches(
            text_blocks(16), rows=rows, micro_batches=micro, rank=rank, world_size=world, seed=3
        )
        assert batches.tokens_per_step == rows * micro * world * 9
        parts = batches.of_step(step)
        assert [tuple(ids.shape) for ids in parts] == [(rows, 10)] * micro
        return torch.cat(parts).tolist()

    one = of(5, rows=8, micro=1, rank=0, world=1)
    assert of(5, rows=2, micro=4, rank=0, world=1) == one
    assert of(5, 2, 2, 0, 2) + of(5, 2, 2, 1, 2) == one
    # two steps of eight are once through the sixteen blocks, and the next time round the order is another
    rounds = [sorted(of(step, 8, 1, 0, 1) + of(step + 1, 8, 1, 0, 1)) for step in (0, 2)]
    assert rounds[0] == rounds[1] == sorted(text_blocks(16)["input_ids"])
    assert of(0, 8, 1, 0, 1) != of(2, 8, 1, 0, 1)


def test_text_in_blocks_beyond_the_models_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="blocks of 65 tokens exceed the model's context of 64"):
        ppo_trainer(tmp_path, roles(), unsupervised=text_blocks(2, length=65))


# --- rollouts -----------------------------------------------------------------------------------------------------


def test_several_generation_batches_make_the_update_of_one_large_one(tmp_path: Path) -> None:
    large = ppo_trainer(tmp_path / "1", roles(), ppo_settings(batch_size=8))
    several = ppo_trainer(tmp_path / "2", roles(), ppo_settings(batch_size=2, generation_batches=4))
    calls: list[int] = []
    answer = several.maker.engine._answer
    several.maker.engine._answer = lambda batch, *rest: (calls.append(len(batch.rows)), answer(batch, *rest))[
        1
    ]
    large.train()
    several.train()
    assert set(calls) == {2}
    for one, other in zip(logged(several), logged(large), strict=True):
        assert one["objective/scores"] == pytest.approx(other["objective/scores"], rel=1e-4, abs=1e-5)
        assert one["ppo/episodes"] == other["ppo/episodes"]


@pytest.mark.parametrize("shapes", [None, ROLLOUT], ids=["varying", "static"])
def test_answers_are_cut_after_the_first_truncating_token_and_those_without_get_the_penalty(
    tmp_path: Path, shapes: Any
) -> None:
    words = [f"w{number}" for number in range(4, 30)]
    settings = ppo_settings(
        batch_size=32, truncate_tokens=words, truncate_after=1, penalty_reward_value=-7.0, score_clip=0.5
    )
    trainer = ppo_trainer(tmp_path, roles(), settings, shapes=shapes)
    experience, _ = trainer.make_experience(trainer.prompts.batch(0, 0, 1, 32))
    rollout = experience.rollout
    shaped = trainer.maker._shape_scores(torch.zeros(32), rollout).tolist()
    kinds = set()
    for answer, score in zip(rollout.response_ids(), shaped, strict=True):
        assert all(token not in range(4, 30) for token in answer[:-1])
        came_to_an_end = answer[-1] in range(4, 30) and len(answer) > 2
        kinds.add((came_to_an_end, answer[-1] in range(4, 30)))
        assert score == (0.0 if came_to_an_end else -7.0)
    assert kinds == {(True, True), (False, True), (False, False)}


def test_a_truncating_token_must_be_one_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--truncate_tokens: 'w5 w6' is 2 tokens"):
        ppo_trainer(tmp_path, roles(), ppo_settings(truncate_tokens=["w5 w6"]))
    tokenizer = ppo_trainer(tmp_path, roles()).processing_class
    assert token_ids(["</s>", "w9"], tokenizer) == [2, 9]
    with pytest.raises(UserError, match=r"--truncate_tokens: 'nothing' .*unknown"):
        token_ids(["nothing"], tokenizer)


@pytest.mark.parametrize("shapes", [None, ROLLOUT], ids=["varying", "static"])
def test_answers_that_are_too_short_are_not_learnt_from(tmp_path: Path, shapes: Any) -> None:
    """Whatever they are worth: their advantages change no gradient, and their tokens are not counted."""
    short_ones = {"truncate_tokens": [f"w{number}" for number in range(4, 30)], "min_answer_tokens": 4}
    settings = ppo_settings(batch_size=16, mini_batch_size=16, ppo_epochs=1, **short_ones)
    trainer = ppo_trainer(tmp_path, roles(separate=True), settings, shapes=shapes)
    trainer._begin_update(0)
    experience = trainer.experience
    lengths = experience.rollout.response_lengths
    short = lengths < 4
    assert 0 < short.sum() < 16
    assert experience.lengths().tolist() == torch.where(short, 0, lengths).tolist()
    assert trainer.items_of_step.tolist() == [float(lengths[~short].sum())]
    real = experience.advantages[experience.learnt]
    assert (real.mean().item(), real.var().item()) == pytest.approx((0, 1), abs=1e-4)

    def gradient() -> list[torch.Tensor]:
        trainer.model.zero_grad()
        (batch,) = trainer.batches_of_step(experience, 0, 0)
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=trainer.items_of_step[0]).backward()
        return [weight.grad.clone() for weight in trainer.model.parameters() if weight.grad is not None]

    before = gradient()
    experience.advantages[short] = 1e3
    experience.returns[short] = -1e3
    assert all(torch.equal(one, other) for one, other in zip(before, gradient(), strict=True))
    share = trainer.averages.flush(trainer.accelerator)["response/too_short"]
    assert share == pytest.approx(short.float().mean().item())


def test_an_update_in_which_every_answer_is_too_short_changes_nothing(tmp_path: Path) -> None:
    model = roles()
    before = weights(model)
    ppo_trainer(tmp_path, model, ppo_settings(steps=8, min_answer_tokens=7)).train()
    assert same(weights(model), before)


def test_the_average_score_is_logged(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, roles(adapter=True))
    trainer.train()
    lines = logged(trainer)
    expected = lines[0]["objective/scores"]
    for line in lines:
        expected = SCORES_EMA_DECAY * expected + (1 - SCORES_EMA_DECAY) * line["objective/scores"]
        assert line["objective/scores_ema"] == pytest.approx(expected, rel=1e-4)


# --- one's own loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [False, True])
def test_updates_by_hand_give_the_weights_that_train_gives(tmp_path: Path, early_stopping: bool) -> None:
    settings = ppo_settings(
        mini_batch_size=2, adap_kl_ctrl=True, kl_horizon=50, early_stopping=early_stopping, target_kl=1e-4
    )
    options = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    whole = ppo_trainer(tmp_path / "1", roles(separate=True), settings, **options)
    whole.train()
    trainer = ppo_trainer(tmp_path / "2", roles(separate=True), settings, **options)
    by_hand = UpdatesByHand(trainer)
    for update, line in enumerate(logged(whole)):
        experience, samples = by_hand.experience(trainer.prompts.batch(update, 0, 1, 8).rows)
        policy_loss, value_loss = by_hand.learn(experience)
        assert (policy_loss, value_loss) == pytest.approx((line["policy/loss"], line["value/loss"]), abs=1e-6)
        assert by_hand.metrics["objective/scores"] == pytest.approx(line["objective/scores"], abs=1e-6)
        assert len(samples) == 8
    assert same(weights(trainer.model), weights(whole.model))
    with pytest.raises(ValueError, match=r"an update answers 8 prompts \(batch_size\), found 3"):
        by_hand.experience(trainer.prompts.batch(9, 0, 1, 3).rows)
