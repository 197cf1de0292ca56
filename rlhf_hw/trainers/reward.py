"""Reward modelling: the chosen answer must score higher than the rejected one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rlhf_hw.algorithms.losses import pairwise_reward_loss
from rlhf_hw.models.reward_model import RewardStatistics
from rlhf_hw.trainers.base import StageMixin


def preference_metrics(prediction: Any) -> dict[str, float]:
    """Loss, accuracy with its 95% confidence interval (Wilson), margin, and the scores' means and spread."""
    chosen, rejected = prediction.predictions[:, 0], prediction.predictions[:, 1]
    low, high = wilson_interval(int((chosen > rejected).sum()), len(chosen))
    return {
        "loss": float(np.logaddexp(0.0, rejected - chosen).mean()),
        "accuracy": float((chosen > rejected).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": float((chosen - rejected).mean()),
        "chosen_mean": float(chosen.mean()),
        "chosen_std": float(chosen.std(ddof=1)) if len(chosen) > 1 else 0.0,
        "rejected_mean": float(rejected.mean()),
        "pairs": float(len(chosen)),
    }


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); z = 1.96 is 95%. A tie may count as half a success."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    return centre - half, centre + half


class RewardMixin(StageMixin):
    """Trains a `RewardModel` on batches {input_ids, attention_mask} [2B, T]: B chosen rows, then B rejected."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_metrics = preference_metrics

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        return torch.tensor(len(batch["input_ids"]) // 2)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        chosen, rejected = self._scores(model, inputs)
        pairs = len(chosen)
        self.tokens.add(inputs["attention_mask"])
        self.averages.add("accuracy", (chosen > rejected).sum(), pairs)
        self.averages.add("margin", (chosen - rejected).sum(), pairs)
        self.averages.add("chosen_mean", chosen.sum(), pairs)
        self.averages.add("rejected_mean", rejected.sum(), pairs)
        return self.scale_loss(pairwise_reward_loss(chosen, rejected).sum(), num_items_in_batch)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """(None, scores [B, 2] of chosen and rejected, a placeholder [B])."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.autocast():
            scores = torch.stack(self._scores(model, inputs), dim=1)
        return None, scores, torch.zeros(len(scores), device=scores.device)

    def score_statistics(self, dataset: Any) -> RewardStatistics:
        """Mean and standard deviation of the chosen answers' scores in `dataset` (tokenised pairs)."""
        metrics = self.predict(dataset, metric_key_prefix="s").metrics
        return RewardStatistics(metrics["s_chosen_mean"], metrics["s_chosen_std"], int(metrics["s_pairs"]))

    def _scores(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        scores = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        half = len(scores) // 2
        return scores[:half], scores[half:]
