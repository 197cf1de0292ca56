"""The loss of one micro-batch of experience: what every way of training with PPO here goes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rlhf_hw.algorithms.losses import PolicyLoss, ValueLoss, policy_loss, value_loss
from rlhf_hw.algorithms.masked import masked_mean, masked_sum
from rlhf_hw.trainers.experience import to_rows

if TYPE_CHECKING:
    from rlhf_hw.arguments.ppo import PPOArguments


class MinibatchLoss(NamedTuple):
    """What `minibatch_loss` found; all sums are over the tokens that are learnt from.

    total: clipped policy loss plus `vf_coef` times clipped value loss, a sum (0-d); the only one with a gradient.
    policy, value: the parts, per token [B, R]. tokens: their number. moved: sum of old minus new log-probability.
    too_far: whether the mean ratio exceeds `ratio_threshold`; `total` is then 0.
    unsupervised: sum of -log p over the unsupervised tokens, with a gradient; None without any.
    """

    total: torch.Tensor
    policy: PolicyLoss
    value: ValueLoss
    tokens: torch.Tensor
    moved: torch.Tensor
    too_far: torch.Tensor
    unsupervised: torch.Tensor | None


def minibatch_loss(
    model: Any, inputs: dict[str, Any], settings: PPOArguments, answer_width: int | None
) -> MinibatchLoss:
    """PPO's loss of the rows of `Experience.minibatch`, and that of `unsupervised_ids` [b, L] if there are any.

    `model` is an `ActorCritic`, wrapped for training or not.
    """
    mask, learnt = inputs["mask"], inputs["learnt"]
    found = model(
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["response_mask"],
        answer_width,
        inputs.get("unsupervised_ids"),
    )
    logprobs, values = to_rows(found.logprobs, mask), to_rows(found.values, mask)
    old_logprobs, tokens = inputs["old_logprobs"], learnt.sum()
    with torch.no_grad():
        moved = masked_sum(old_logprobs - logprobs, learnt)
        too_far = masked_mean((logprobs - old_logprobs).exp(), learnt) > settings.ratio_threshold
    # replaced before the exponential: a ratio that overflows makes NaN even of a gradient times zero
    logprobs = torch.where(too_far, old_logprobs, logprobs)
    policy = policy_loss(logprobs, old_logprobs, inputs["advantages"], learnt, settings.clip_range)
    value = value_loss(values, inputs["old_values"], inputs["returns"], learnt, settings.clip_range_value)
    total = policy.loss.sum() + settings.vf_coef * value.loss.sum()
    total = torch.where(too_far, torch.zeros_like(total), total)
    return MinibatchLoss(total, policy, value, tokens, moved, too_far, found.unsupervised_loss)
