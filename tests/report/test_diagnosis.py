"""A healthy run is left in peace; each fault is named once, in a sentence that says what to try."""

import random

import pytest

from rlhf_hw.report.diagnosis import findings


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("seed", range(5))
def test_healthy_runs_have_no_findings(synthetic, stage, seed):
    assert findings(synthetic[stage](seed=seed)) == []


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("objective/kl", -0.8, "KL to the reference is negative"),
        ("objective/kl", 80.0, "has reached 80"),
        ("response/eos_rate", 0.3, "Only 30% of the responses end by themselves"),
        ("value/explained_variance", -0.4, "less than a constant"),
        ("policy/clipfrac", 0.5, "50% of the tokens hit"),
        ("ppo/skipped_minibatches", 2, "400 minibatches were skipped"),
        ("ppo/early_stopped", 1, "100% of the updates were stopped early"),
        ("objective/scores", 0.5, "The score did not rise"),
    ],
)
def test_each_ppo_fault_is_found_and_nothing_else(synthetic, column, value, words):
    rows = [{**row, column: value} for row in synthetic["ppo"]()]
    (sentence,) = findings(rows)
    assert words in sentence
    assert ": " in sentence  # what to try
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_falling_score_is_told_from_a_flat_one(synthetic):
    (falling,) = findings(synthetic["ppo"](lift=-3.0))
    assert "The score fell" in falling
    (flat,) = findings(synthetic["ppo"](lift=0.0))
    assert "did not rise" in flat


def test_flat_scores_of_pure_noise_are_seldom_called_a_fall():
    called = 0
    for seed in range(200):
        rng = random.Random(seed)
        rows = [{"step": i, "objective/scores": rng.gauss(0, 1)} for i in range(60)]
        called += any("fell" in sentence for sentence in findings(rows))
    assert (
        called <= 16
    )  # two standard errors of the difference of two means (√2 of one) lie 1.4 σ out: about 8 %


def test_collapsing_entropy_and_length_are_found(synthetic):
    rows = synthetic["ppo"]()
    for index, row in enumerate(rows):
        row["objective/entropy"] = 2.0 if index < 100 else 0.05
        row["response/length_mean"] = 60 if index < 100 else 3
    text = " ".join(findings(rows))
    assert "Entropy collapsed from 2 to 0.05" in text
    assert "shrank from 60 to 3 tokens" in text


def test_overfitting_is_found_at_the_step_where_it_began():
    rows = [{"step": step, "eval_loss": loss} for step, loss in [(10, 2.0), (20, 1.5), (30, 1.6), (40, 1.9)]]
    (sentence,) = findings(rows)
    assert "lowest at step 20 (1.5)" in sentence


def test_loss_that_does_not_fall_is_found(synthetic):
    rows = [{**row, "loss": 4.0 + 0.001 * row["step"]} for row in synthetic["sft"]() if "loss" in row]
    (sentence,) = findings(rows)
    assert "Training loss did not fall" in sentence


def test_reward_model_at_chance_and_overfitted_reward_model_are_found(synthetic):
    rows = synthetic["reward"]()
    assert "hardly better than chance" in findings([*rows, {"step": 300, "eval_accuracy": 0.51}])[0]
    assert (
        "of training pairs rightly but only 65%" in findings([*rows, {"step": 300, "eval_accuracy": 0.65}])[0]
    )


def test_nonfinite_metrics_are_counted_from_their_first_step():
    rows = [{"step": step, "loss": None, "nonfinite": {"loss": "nan"}} for step in (7, 8)]
    (sentence,) = findings(rows)
    assert sentence.startswith("loss was not a finite number 2 times, first at step 7")


def test_short_runs_are_not_judged_by_trend(synthetic):
    assert findings(synthetic["ppo"](updates=200)[-5:]) == []
    assert findings([]) == []
