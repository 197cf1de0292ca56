"""Shapes fixed before training change nothing but the shapes."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_models import CONTEXT, tiny_model
from tiny_runs import pair_rows, ppo_settings, ppo_trainer, reward_trainer, roles, sft_trainer, weights

from backends.shapes import DynamicShapes, RolloutShapes, StaticBuckets

BUCKETS = StaticBuckets((8, 16))
ROLLOUT = RolloutShapes(StaticBuckets((8,)), StaticBuckets((14,)), answer_width=6)


def logged(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def assert_same_run(static: Any, dynamic: Any) -> None:
    """The same weights and the same log lines, but for times.

    Adam and Adafactor take a full step along a gradient that is nothing but rounding: their weights agree on average.
    """
    static.train()
    dynamic.train()
    expected = weights(dynamic.model)
    if static.args.optim != "sgd":
        apart = [(found - expected[name]).abs().flatten() for name, found in weights(static.model).items()]
        assert torch.cat(apart).mean() < 0.02 * static.args.learning_rate
    for name, found in weights(static.model).items() if static.args.optim == "sgd" else ():
        torch.testing.assert_close(
            found, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert len(logged(static)) == len(logged(dynamic)) > 0
    for found, wanted in zip(logged(static), logged(dynamic), strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if not name.startswith(("time/", "speed/")):
                assert found[name] == pytest.approx(value, rel=1e-3, abs=2e-4), name


def widths_seen(model: torch.nn.Module) -> set[tuple[int, ...]]:
    """Fills, as the model runs, with the shapes of its inputs in forward passes with gradients."""
    seen: set[tuple[int, ...]] = set()

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            seen.add(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("accumulation", "optimizer"), [(1, "sgd"), (2, "sgd"), (1, "adamw_torch"), (2, "adafactor")]
)
def test_sft_in_buckets_is_the_same_run(
    tmp_path: Path, architecture: str, accumulation: int, optimizer: str
) -> None:
    """Also with optimizers whose first step is not like the others."""
    options = {"gradient_accumulation_steps": accumulation, "optim": optimizer, "learning_rate": 1e-3}
    static = sft_trainer(tmp_path / "1", tiny_model(architecture), shapes=BUCKETS, **options)
    assert_same_run(static, sft_trainer(tmp_path / "2", tiny_model(architecture), **options))
    found, expected = static.evaluate(), sft_trainer(tmp_path / "3", static.model).evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_reward_modelling_in_buckets_is_the_same_run(tmp_path: Path, accumulation: int) -> None:
    options = {"gradient_accumulation_steps": accumulation, "optim": "sgd"}
    assert_same_run(
        reward_trainer(tmp_path / "1", tiny_model(labels=1), shapes=BUCKETS, **options),
        reward_trainer(tmp_path / "2", tiny_model(labels=1), **options),
    )


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("estimator", ["kl", "full"])
def test_ppo_with_one_width_is_the_same_run(tmp_path: Path, separate: bool, estimator: str) -> None:
    # what moved before the first step must not count: it would stop the first update early
    settings = ppo_settings(kl_estimator=estimator, whiten_rewards=True, early_stopping=True, target_kl=0.004)
    assert_same_run(
        ppo_trainer(tmp_path / "1", roles(separate=separate), settings, shapes=ROLLOUT, optim="sgd"),
        ppo_trainer(tmp_path / "2", roles(separate=separate), settings, optim="sgd"),
    )


def test_ppo_evaluates_alike(tmp_path: Path) -> None:
    found = ppo_trainer(tmp_path / "1", roles(), shapes=ROLLOUT).evaluate()
    expected = ppo_trainer(tmp_path / "2", roles()).evaluate()
    for name in ("eval_scores", "eval_kl", "eval_length", "eval_eos_rate"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


def test_an_evaluation_keeps_every_row_and_training_its_full_batches(tmp_path: Path) -> None:
    trainer = reward_trainer(
        tmp_path, tiny_model(labels=1), pair_rows(7), BUCKETS, max_steps=-1, num_train_epochs=1
    )
    assert trainer.evaluate()["eval_pairs"] == 5  # two a batch
    trainer.train()
    assert trainer.state.global_step == 3
    few = reward_trainer(
        tmp_path, tiny_model(labels=1), pair_rows(1), BUCKETS, max_steps=-1, num_train_epochs=1
    )
    few.train()
    assert few.state.global_step == 1  # an incomplete batch that is the only one


def test_no_width_exceeds_the_context(tmp_path: Path) -> None:
    """GPT-2 has no position beyond it."""
    context = CONTEXT
    ids = [list(range(4, 4 + context - 6)), [5, 6]]
    prompts = datasets.Dataset.from_dict({"input_ids": ids * 4, "prompt": ["long", "short"] * 4})
    shapes = RolloutShapes(StaticBuckets((context,)), StaticBuckets((context + 8,)), answer_width=6)
    trainer = ppo_trainer(tmp_path, roles("gpt2"), rows=prompts, shapes=shapes)
    seen = widths_seen(trainer.model.policy)
    trainer.train()
    assert seen == {(4, context)}


def test_every_bucket_is_seen_in_the_first_step(tmp_path: Path) -> None:
    """Also one that no batch of that step falls into."""
    trainer = sft_trainer(tmp_path, tiny_model(), shapes=StaticBuckets((8, 16, 24)), max_steps=1)
    seen = widths_seen(trainer.model)
    trainer.train()
    assert seen == {(2, 8), (2, 16), (2, 24)}


def test_ppo_has_one_shape(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, roles(), shapes=ROLLOUT)
    seen = widths_seen(trainer.model.policy)
    trainer.train()
    assert seen == {(4, 14)}


def test_warming_up_draws_no_random_number(tmp_path: Path) -> None:
    """Else a run with dropout would not be the same run."""
    state: list[torch.Tensor] = []
    trainer = sft_trainer(tmp_path, tiny_model("opt", dropout=0.1), shapes=BUCKETS, max_steps=1)
    inside = trainer._warm_up

    def watched(*args: Any) -> None:
        state.append(torch.get_rng_state())
        inside(*args)
        state.append(torch.get_rng_state())

    trainer._warm_up = watched
    trainer.train()
    assert torch.equal(state[0], state[1])


def test_the_policies_differ_in_what_may_vary() -> None:
    assert DynamicShapes().may_vary
    assert RolloutShapes().may_vary
    assert not BUCKETS.may_vary
    assert not ROLLOUT.may_vary
