"""Reward modelling: the chosen answer must score higher than the rejected one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rlhf_hw.algorithms.losses import (
    cross_entropy_reward_loss,
    divergent_part,
    pairwise_reward_loss,
    tokenwise_reward_loss,
)
from rlhf_hw.models.reward_model import RewardStatistics, last_real_token
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
    """Trains a `RewardModel` on batches {input_ids, attention_mask} [2B, T]: B chosen rows, then B rejected, padded
    on the right.

    Keyword args beyond the base trainer's:
        rm_loss: last_token, tokenwise or cross_entropy, as `--rm_loss` has them. Whatever it is, an answer's score is
            the value at its last real token, and by that accuracy, margin and evaluation go.
    A batch may have `margin` [B]: by how much the chosen answer should lead.
    """

    length_columns = ("chosen_input_ids", "rejected_input_ids")

    def __init__(self, *args: Any, rm_loss: str = "last_token", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_metrics = preference_metrics
        self.rm_loss = rm_loss

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        ids = batch["input_ids"]
        return torch.full(
            (), len(ids) // 2, device=ids.device
        )  # a copy from the host would wait for the device

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        loss, chosen, rejected = self._losses(model, inputs)
        pairs = len(chosen)
        self.tokens.add(inputs["attention_mask"])
        self.averages.add("accuracy", (chosen > rejected).sum(), pairs)
        self.averages.add("margin", (chosen - rejected).sum(), pairs)
        self.averages.add("chosen_mean", chosen.sum(), pairs)
        self.averages.add("rejected_mean", rejected.sum(), pairs)
        return self.scale_loss(loss.sum(), num_items_in_batch)

    def _losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(losses, chosen scores, rejected scores) of the pairs of a batch, [B] each."""
        margin = inputs.get("margin")
        if self.rm_loss == "tokenwise":
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            values = model(input_ids=ids, attention_mask=mask, every_token=True, right_padded=True)
            half = len(ids) // 2
            compared, chosen_at, rejected_at = divergent_part(
                ids[:half], ids[half:], mask[:half], mask[half:]
            )
            of_chosen, of_rejected = values[:half].gather(1, chosen_at), values[half:].gather(1, rejected_at)
            scores = values.gather(1, last_real_token(mask)[:, None]).squeeze(1)
            loss = tokenwise_reward_loss(of_chosen, of_rejected, compared, margin)
            return loss, scores[:half], scores[half:]
        chosen, rejected = self._scores(model, inputs)
        if self.rm_loss == "cross_entropy":
            never = torch.zeros_like(chosen, dtype=torch.bool)  # the chosen answer comes first
            return cross_entropy_reward_loss(chosen, rejected, never, margin), chosen, rejected
        return pairwise_reward_loss(chosen, rejected, margin), chosen, rejected

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
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        scores = model(input_ids=ids, attention_mask=mask, right_padded=True)
        half = len(scores) // 2
        return scores[:half], scores[half:]
