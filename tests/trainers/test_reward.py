"""Reward modelling: the loss, and what is reported of it."""

import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import pair_rows, random_ids, reward_trainer, weights
from transformers import EvalPrediction

from backends.shapes import StaticBuckets
from rlhf_hw.data.collate import PairCollator
from rlhf_hw.trainers.reward import preference_metrics, wilson_interval


def test_the_loss_is_the_mean_over_pairs_of_minus_log_sigmoid_of_the_margin(tmp_path: Path) -> None:
    trainer = reward_trainer(tmp_path, tiny_model(labels=1), per_device_train_batch_size=8, max_steps=1)
    expected = []
    for row in pair_rows():
        one, other = (torch.tensor([row[f"{side}_input_ids"]]) for side in ("chosen", "rejected"))
        margin = trainer.model(one, torch.ones_like(one)) - trainer.model(other, torch.ones_like(other))
        expected.append(math.log1p(math.exp(-margin.item())))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(expected) / 8, abs=1e-4)


def test_training_puts_the_chosen_answers_first(tmp_path: Path) -> None:
    trainer = reward_trainer(tmp_path, tiny_model(labels=1), per_device_train_batch_size=8, max_steps=15)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert logs[0]["loss"] > 3 * logs[-1]["loss"]
    assert logs[-1]["accuracy"] == 1.0
    assert logs[-1]["margin"] == pytest.approx(logs[-1]["chosen_mean"] - logs[-1]["rejected_mean"], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_is_that_of_all_pairs_at_once(tmp_path: Path, batch_size: int) -> None:
    trainer = reward_trainer(tmp_path, tiny_model(labels=1), per_device_eval_batch_size=batch_size)
    batch = PairCollator(0)(list(pair_rows(5, seed=1)))
    with torch.no_grad():
        chosen, rejected = trainer.model(batch["input_ids"], batch["attention_mask"]).view(2, 5)
    found = trainer.evaluate()
    expected = {
        "eval_loss": -torch.nn.functional.logsigmoid(chosen - rejected).mean(),
        "eval_accuracy": (chosen > rejected).float().mean(),
        "eval_margin": (chosen - rejected).mean(),
        "eval_chosen_mean": chosen.mean(),
        "eval_chosen_std": chosen.std(),
        "eval_rejected_mean": rejected.mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name
    assert found["eval_pairs"] == 5
    statistics = trainer.score_statistics(pair_rows(5, seed=1))
    assert (statistics.mean, statistics.std) == pytest.approx(
        (chosen.mean().item(), chosen.std().item()), rel=1e-4
    )
    assert statistics.count == 5


def test_a_tie_is_no_success() -> None:
    scores = np.array([[1.0, 1.0], [2.0, 1.0]])
    found = preference_metrics(EvalPrediction(predictions=scores, label_ids=np.zeros(2)))
    assert found["accuracy"] == 0.5


def test_wilsons_interval_is_the_published_one() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 857), table I: 81 of 263 and 0 of 20."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


# --- the other losses ----------------------------------------------------------------------------------------


def pairs_with_margin(margins: list[float]) -> datasets.Dataset:
    """Four pairs whose sides begin alike, of other lengths."""
    ids = random_ids([9, 5, 7, 6, 4, 9, 7, 8], seed=2)
    chosen, rejected = ids[:4], [one[:3] + other[3:] for one, other in zip(ids[:4], ids[4:], strict=True)]
    return datasets.Dataset.from_dict(
        {"chosen_input_ids": chosen, "rejected_input_ids": rejected, "margin": margins}
    )


@pytest.mark.parametrize("rm_loss", ["last_token", "tokenwise", "cross_entropy"])
@pytest.mark.parametrize("margins", [[0.0] * 4, [0.5, 0.0, 2.0, -1.0]], ids=["plain", "margin"])
def test_each_loss_is_what_one_pair_at_a_time_gives(
    tmp_path: Path, rm_loss: str, margins: list[float]
) -> None:
    rows, model = pairs_with_margin(margins), tiny_model(labels=1)
    settings = {"rm_loss": rm_loss, "per_device_train_batch_size": 4, "max_steps": 1}
    trainer = reward_trainer(tmp_path, model, rows, learning_rate=0.0, **settings)
    losses, correct = [], []
    with torch.no_grad():
        for row in rows:
            values = [
                model.score(model.model(torch.tensor([row[f"{side}_input_ids"]])).last_hidden_state)[0, :, 0]
                for side in ("chosen", "rejected")
            ]
            longer = max(map(len, values))
            chosen, rejected = (torch.cat([v, v[-1:].expand(longer - len(v))]) for v in values)
            first = 3 if rm_loss == "tokenwise" else longer - 1
            difference = chosen[first:] - rejected[first:] - row["margin"]
            losses.append(-torch.nn.functional.logsigmoid(difference).mean())
            correct.append(bool(chosen[-1] > rejected[-1]))
    trainer.train()
    (line,) = [row for row in trainer.state.log_history if "loss" in row]
    assert line["loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert line["accuracy"] == sum(correct) / 4


def test_tokenwise_in_buckets_and_micro_batches_is_the_same_step(tmp_path: Path) -> None:
    found = []
    plain = {
        "rm_loss": "tokenwise",
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "max_steps": 1,
    }
    for number, (batch, accumulation, shapes) in enumerate(
        [(4, 1, None), (2, 2, None), (4, 1, StaticBuckets((16,)))]
    ):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        model = tiny_model(labels=1)
        rows = pairs_with_margin([0.0] * 4)
        reward_trainer(tmp_path / str(number), model, rows, shapes, **options, **plain).train()
        found.append(weights(model))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-5)


def test_tokenwise_training_separates_the_pairs(tmp_path: Path) -> None:
    settings = {"rm_loss": "tokenwise", "per_device_train_batch_size": 8, "max_steps": 15}
    trainer = reward_trainer(tmp_path, tiny_model(labels=1), **settings)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert logs[0]["loss"] > 2 * logs[-1]["loss"]
    assert logs[-1]["accuracy"] == 1.0
