"""Losses of policy, critic and reward model, and what they need of logits. See `rlhf_hw.algorithms` for names.

Policy and value losses come back per token and unreduced. How they are averaged is the caller's: it alone knows
how many real tokens all micro-batches and processes hold together, and only division by that number makes N
accumulation steps equal one large batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .masked import at_least_float32, masked_sum, require_same_shape, zero_padding

# Logits upcast at a time: at most 64 MiB in float32; where there are fewer, a sixteenth of them, which stays in a CPU's
# cache, and is no less than what makes a kernel worth its launch.
CHUNK_ELEMENTS, LEAST_ELEMENTS, CHUNKS = 2**24, 2**18, 16


class PolicyLoss(NamedTuple):
    """All [B, R], 0 in padding; sum each and divide by the global token count. Only `loss` has a gradient."""

    loss: Tensor
    ratio: Tensor  # exp(logprobs - old_logprobs)
    clipped: Tensor  # 1 where the clip took effect: its mean is the clip fraction
    approxkl: Tensor  # (logprobs - old_logprobs)² / 2: its mean estimates KL(old || new) in nats


class ValueLoss(NamedTuple):
    """Both [B, R], 0 in padding; sum each and divide by the global token count. Only `loss` has a gradient."""

    loss: Tensor
    clipped: Tensor  # 1 where the clip took effect


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> PolicyLoss:
    """PPO's clipped surrogate, negated: Schulman et al. 2017 (arXiv 1707.06347) eq. 7; TRL 1.12 L841-845.

        loss = max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range))

    Args: `logprobs`, `old_logprobs`, `advantages`, `mask` [B, R]; `clip_range` positive.
    `approxkl` is TRL 1.12 ppo_trainer.py L857 without the padding that stands in its mean.
    Raises ValueError where shapes differ, or `clip_range` is not positive.
    """
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    _require_positive("clip_range", clip_range)
    # Padding leaves before exp: garbage there could overflow, and 0 * inf in the backward pass is NaN.
    log_ratio = zero_padding(at_least_float32(logprobs) - at_least_float32(old_logprobs), mask)
    advantages = zero_padding(advantages, mask)
    ratio = log_ratio.exp()
    unclipped_loss = -advantages * ratio
    clipped_loss = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return PolicyLoss(
        loss=torch.maximum(unclipped_loss, clipped_loss),
        ratio=zero_padding(ratio.detach(), mask),
        clipped=at_least_float32(clipped_loss.detach() > unclipped_loss.detach()),
        approxkl=log_ratio.detach().square() / 2,
    )


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range_value: float
) -> ValueLoss:
    """Squared error of the critic, the worse of free and clipped prediction; TRL 1.12 ppo_trainer.py L829-837.

        loss = max((V - returns)², (clip(V, V_old - c, V_old + c) - returns)²) / 2

    A critic that has moved more than c = `clip_range_value` away from `old_values` and towards the returns
    gets no further gradient. (Not in the PPO paper; from its reference implementation.)

    Args: `values`, `old_values`, `returns`, `mask` [B, R]; `clip_range_value` positive, in units of return.
    Raises ValueError where shapes differ, or `clip_range_value` is not positive.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    _require_positive("clip_range_value", clip_range_value)
    values, old_values, returns = (zero_padding(tensor, mask) for tensor in (values, old_values, returns))
    held = values.clamp(old_values - clip_range_value, old_values + clip_range_value)
    free_error, held_error = (values - returns).square(), (held - returns).square()
    return ValueLoss(
        loss=torch.maximum(free_error, held_error) / 2,
        clipped=at_least_float32(held_error.detach() > free_error.detach()),
    )


def pairwise_reward_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) of each pair, in nats: [B] scores -> [B].

    Bradley-Terry; Ouyang et al. 2022 (arXiv 2203.02155) eq. 1, and with `margin` [B] Touvron et al. 2023
    (arXiv 2307.09288) eq. 2. log 2 = 0.693 is the loss of knowing nothing.
    Raises ValueError where shapes differ.
    """
    require_same_shape(chosen=chosen, rejected=rejected)
    difference = at_least_float32(chosen) - at_least_float32(rejected)
    if margin is not None:
        require_same_shape(chosen=chosen, margin=margin)
        difference = difference - at_least_float32(margin)
    return -torch.nn.functional.logsigmoid(difference)


def cross_entropy_reward_loss(
    first: Tensor, second: Tensor, second_preferred: Tensor, margin: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each preference given the logit second - first, in nats: [B] scores -> [B].

    AlpacaFarm's reward-model loss. `second_preferred` [B] is True where the second answer was preferred; for such labels
    this is `pairwise_reward_loss` of the preferred over the other. `margin` [B] is taken off the preferred answer's lead.
    Raises ValueError where shapes differ, or the labels are not of type bool: labels of other kinds could be wrong, and to
    look at them here would make the host wait for the device in every step.
    """
    require_same_shape(first=first, second=second, second_preferred=second_preferred)
    if second_preferred.dtype is not torch.bool:
        raise ValueError(f"second_preferred: expected a mask of bools, found {second_preferred.dtype}")
    logit = at_least_float32(second) - at_least_float32(first)
    label = second_preferred.to(logit.dtype)
    if margin is not None:
        require_same_shape(first=first, margin=margin)
        logit = logit - at_least_float32(margin) * (2 * label - 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="none")


def tokenwise_reward_loss(
    chosen: Tensor,
    rejected: Tensor,
    compared: Tensor,
    margin: Tensor | None = None,
) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected - margin) over the compared tokens of each pair: [B, T] -> [B].

    DeepSpeed-Chat's reward-model loss, but for its padding: `compared` and the values are those of `divergent_part`.
    Raises ValueError where shapes differ. 0 for a pair without a compared token.
    """
    require_same_shape(chosen=chosen, rejected=rejected, compared=compared)
    wide = None if margin is None else margin[:, None].expand_as(chosen)
    losses = zero_padding(pairwise_reward_loss(chosen, rejected, wide), compared)
    return losses.sum(dim=1) / compared.bool().sum(dim=1).clamp(min=1)


def divergent_part(
    chosen_ids: Tensor, rejected_ids: Tensor, chosen_mask: Tensor, rejected_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens of a pair `tokenwise_reward_loss` compares: (compared, chosen_at, rejected_at), [B, T] each.

    Args: ids and masks [B, T], right padded; masks nonzero on real tokens.
    `compared` (bool) is true from the first token that differs to the end of the longer answer. `chosen_at` and
    `rejected_at` are the columns whose value stands for each side there: its own token, and beyond its end its *last*
    one, whose value is the answer's score. So no padding is ever read, each token from the fork on is compared, and
    so are the two scores. (DeepSpeed-Chat reads the padding of the shorter answer there.)
    """
    chosen_real, rejected_real = chosen_mask.bool(), rejected_mask.bool()
    differs = (chosen_ids != rejected_ids) | (chosen_real != rejected_real)
    either = chosen_real | rejected_real
    compared = ((differs & either).cumsum(dim=1) > 0) & either
    columns = torch.arange(chosen_ids.shape[1], device=chosen_ids.device)
    chosen_at, rejected_at = (
        torch.minimum(columns, (real.sum(dim=1, keepdim=True) - 1).clamp(min=0))
        for real in (chosen_real, rejected_real)
    )
    return compared, chosen_at, rejected_at


def row_chunks(logits: Tensor, elements: int | None = None) -> Iterator[Tensor]:
    """Views [n, V] of `logits` [..., V], in row-major order, of at most CHUNK_ELEMENTS elements (or one row).

    Leading dimensions are walked and not flattened: logits of the response are a slice of those of the
    sequence, and flattening a slice would copy all of it.
    """
    if elements is None:
        elements = min(CHUNK_ELEMENTS, max(LEAST_ELEMENTS, logits.numel() // CHUNKS))
    if logits.ndim > 2:
        for part in logits.unbind(dim=0):
            yield from row_chunks(part, elements)
    else:
        rows = logits if logits.ndim == 2 else logits[None]
        yield from rows.split(max(1, elements // rows.shape[-1]))


def normaliser_and_entropy(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(log of the sum of the exponentials, Shannon entropy in nats of the softmax) of `rows` [n, V]: [n] each, in one pass.

    With m the largest logit, e = logits - m, p = exp(e) and s their sum: m + log s, and log s - p·e / s. Entries of -inf
    count as 0 * log 0 = 0.
    """
    below = at_least_float32(rows)
    largest = below.amax(dim=-1, keepdim=True)
    below = below - largest
    p = below.exp()
    total = p.sum(dim=-1)
    products = p.mul_(below.clamp_(min=torch.finfo(below.dtype).min)).sum(dim=-1)
    return total.log() + largest.squeeze(-1), total.log() - products / total


class _SelectiveLogSoftmax(torch.autograd.Function):
    """Keeps only the logits as given for the backward pass, and never a whole float32 copy of them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        entropy = None
        if with_entropy:
            pairs = [normaliser_and_entropy(rows) for rows in row_chunks(logits)]
            normaliser, entropy = (torch.cat(parts).view(index.shape) for parts in zip(*pairs, strict=True))
            ctx.mark_non_differentiable(entropy)
        else:
            normaliser = torch.cat([at_least_float32(rows).logsumexp(dim=-1) for rows in row_chunks(logits)])
            normaliser = normaliser.view(index.shape)
        ctx.save_for_backward(logits, index, normaliser)
        return at_least_float32(logits.gather(-1, index[..., None]).squeeze(-1)) - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _grad_entropy: Tensor) -> tuple[Tensor, None, None]:
        logits, index, normaliser = ctx.saved_tensors
        grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        index, normaliser, weight = (t.reshape(-1, 1) for t in (index, normaliser, grad_output))
        start = 0
        for rows, grad_rows in zip(row_chunks(logits), row_chunks(grad_logits), strict=True):
            here = slice(start, start := start + rows.shape[0])
            # d log p[index] / d logits = onehot(index) - softmax(logits)
            gradient = (at_least_float32(rows) - normaliser[here]).exp_().mul_(-weight[here])
            grad_rows.copy_(gradient.scatter_add_(1, index[here], weight[here]))
        return grad_logits, None, None


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probability (nats) of the entries `index` [...] under softmax(`logits` [..., V]): [...].

    log_softmax then gather, as logit minus logsumexp, a chunk of rows at a time. bfloat16 logits are summed
    and returned in float32: PPO exponentiates differences of these. The gradient has the logits' dtype.
    `index` is int64 in [0, V). Raises ValueError unless index.shape == logits.shape[:-1].
    """
    return _selective_log_softmax(logits, index, False)[0]


def log_softmax_and_entropy(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """`selective_log_softmax`, and the Shannon entropies (nats) of softmax(`logits`), without a gradient: [...] each.

    Entropy as TRL 1.12 ppo_trainer.py L856, between 0 and log V, in at least float32; both from one pass over the logits.
    """
    logprobs, entropy = _selective_log_softmax(logits, index, True)
    assert entropy is not None
    return logprobs, entropy


def _selective_log_softmax(logits: Tensor, index: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    if index.shape != logits.shape[:-1]:
        raise ValueError(
            f"index {list(index.shape)} must have the shape of logits {list(logits.shape)} without V"
        )
    found: tuple[Tensor, Tensor | None] = _SelectiveLogSoftmax.apply(logits, index, with_entropy)
    return found


def cross_entropy_sum(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Sum of -log p(label) in nats over the labels that are not `ignore_index`: 0-d, in at least float32.

    `logits` [..., V] and `labels` [...] stand against each other as they are: the caller shifts. A sum, so that
    the caller divides by the number of targets of the whole step. 0, with zero gradient, without any target.
    Raises ValueError unless labels.shape == logits.shape[:-1].
    """
    is_target = labels != ignore_index
    return -masked_sum(selective_log_softmax(logits, labels.masked_fill(~is_target, 0)), is_target)


def _require_positive(name: str, number: float) -> None:
    if not number > 0:
        raise ValueError(f"{name} must be positive, found {number}")
