"""What the metrics say is wrong: each finding one plain sentence, with something to try.

The thresholds are rules of thumb from what users of PPO for language models report; each stands beside its check.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

from rlhf_hw.report.panels import Row, points

# A trend is judged only on this many points or more.
FEWEST_FOR_TREND = 12


def findings(rows: Sequence[Row]) -> list[str]:
    """The sentences for one run, the gravest first; empty where nothing looks wrong."""
    return [*_nonfinite(rows), *_sft(rows), *_reward_model(rows), *_ppo_signal(rows), *_ppo_update(rows)]


def _nonfinite(rows: Sequence[Row]) -> list[str]:
    where: dict[str, list[int]] = {}
    for row in rows:
        for name in row.get("nonfinite") or {}:
            where.setdefault(name, []).append(row["step"])
    return [
        f"{name} was not a finite number {_times(len(steps))}, first at step {steps[0]}: lower the learning rate, clip "
        "the gradient norm, and prefer bf16 to fp16."
        for name, steps in where.items()
    ]


def _sft(rows: Sequence[Row]) -> list[str]:
    found = []
    steps, losses = points(rows, "eval_loss")
    if len(losses) >= 3:
        best = min(losses)
        if losses[-1] > best + 0.02 * abs(best):
            found.append(
                f"Held-out loss was lowest at step {steps[losses.index(best)]:.0f} ({best:.4g}) and has risen to "
                f"{losses[-1]:.4g} since, which is overfitting: train for fewer epochs or keep the best checkpoint."
            )
    _, training = points(rows, "loss")
    is_ppo = any(
        "objective/scores" in row or "policy/loss" in row for row in rows
    )  # its loss means nothing alone
    if len(training) >= FEWEST_FOR_TREND and not is_ppo and _tail(training) >= _head(training):
        found.append(
            f"Training loss did not fall ({_head(training):.4g} at first, {_tail(training):.4g} at the end): raise the "
            "learning rate, and check with 'rlhf-hw data preview' that the loss covers the answers."
        )
    return found


def _reward_model(rows: Sequence[Row]) -> list[str]:
    found = []
    _, held_out = points(rows, "eval_accuracy")
    _, training = points(rows, "accuracy")
    if held_out and held_out[-1] < 0.55:
        found.append(
            f"The reward model ranks {held_out[-1]:.0%} of held-out pairs rightly, hardly better than chance: check that "
            "chosen and rejected are not exchanged, then try more data or a larger model before using it in PPO."
        )
    elif held_out and training and _tail(training) - held_out[-1] > 0.15:
        found.append(
            f"The reward model ranks {_tail(training):.0%} of training pairs rightly but only {held_out[-1]:.0%} of "
            "held-out ones: train for one epoch, or with a lower LoRA rank or more data."
        )
    return found


def _ppo_signal(rows: Sequence[Row]) -> list[str]:
    """The reward, and the distance from the reference that was paid for it."""
    found = []
    _, scores = points(rows, "objective/scores")
    if len(scores) >= FEWEST_FOR_TREND:
        gain, noise = _tail(scores) - _head(scores), _noise_of_change(scores)
        if gain < -2 * noise:
            found.append(
                f"The score fell from {_head(scores):.3g} to {_tail(scores):.3g}: lower the learning rate, do fewer "
                "PPO epochs a batch, and look whether the value function has learnt."
            )
        elif gain <= 2 * noise:
            found.append(
                f"The score did not rise beyond its noise ({_head(scores):.3g} at first, {_tail(scores):.3g} at the "
                "end): train longer, raise the learning rate or lower the KL coefficient."
            )
    _, divergence = points(rows, "objective/kl")
    if divergence and _tail(divergence) < -0.05:
        found.append(
            f"KL to the reference is negative at the end ({_tail(divergence):.3g} nats), so sampling and scoring disagree: "
            "sample with temperature 1, top_k 0 and top_p 1, and see that dropout is off."
        )
    elif divergence and _tail(divergence) > 30:
        found.append(
            f"KL to the reference has reached {_tail(divergence):.3g} nats a response, where a reward model is easily "
            "gamed: read the samples, and raise the KL coefficient or stop earlier."
        )
    _, ended = points(rows, "response/eos_rate")
    if ended and _tail(ended) < 0.5:
        found.append(
            f"Only {_tail(ended):.0%} of the responses end by themselves: allow longer responses, penalise a missing "
            "end token, and check that the SFT model has learnt to write it."
        )
    return found


def _ppo_update(rows: Sequence[Row]) -> list[str]:
    """The health of the policy and value updates."""
    found = []
    _, explained = points(rows, "value/explained_variance")
    if explained and _tail(explained) < 0:
        found.append(
            f"The value function explains less than a constant would (explained variance {_tail(explained):.2f}): start it "
            "from the reward model, raise its learning rate, or normalise the reward."
        )
    _, clipped = points(rows, "policy/clipfrac")
    if clipped and _tail(clipped) > 0.3:
        found.append(
            f"{_tail(clipped):.0%} of the tokens hit the policy's clip range: lower the learning rate or the number of "
            "PPO epochs."
        )
    _, entropy = points(rows, "objective/entropy")
    if len(entropy) >= FEWEST_FOR_TREND and _tail(entropy) < 0.1 * _head(entropy):
        found.append(
            f"Entropy collapsed from {_head(entropy):.3g} to {_tail(entropy):.3g} nats, so the responses are becoming all "
            "alike: raise the KL coefficient or lower the learning rate."
        )
    _, lengths = points(rows, "response/length_mean")
    if len(lengths) >= FEWEST_FOR_TREND and _tail(lengths) < 0.25 * _head(lengths):
        found.append(
            f"Responses shrank from {_head(lengths):.0f} to {_tail(lengths):.0f} tokens: see whether the reward favours "
            "short answers, and raise the KL coefficient."
        )
    _, skipped = points(rows, "ppo/skipped_minibatches")
    if sum(skipped) > 0:
        found.append(
            f"{sum(skipped):.0f} minibatches were skipped because the probability ratio ran away: lower the learning rate "
            "or the number of PPO epochs."
        )
    _, stopped = points(rows, "ppo/early_stopped")
    if stopped and fmean(stopped) > 0.5:
        found.append(
            f"{fmean(stopped):.0%} of the updates were stopped early by their KL: lower the learning rate, or raise "
            "target_kl if the score still rises steadily."
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------


def _quarter(values: Sequence[float]) -> int:
    return max(1, len(values) // 4)


def _head(values: Sequence[float]) -> float:
    return fmean(values[: _quarter(values)])


def _tail(values: Sequence[float]) -> float:
    return fmean(values[-_quarter(values) :])


def _noise_of_change(values: Sequence[float]) -> float:
    """Standard error of `_tail - _head`, from the differences of neighbours, which a slow trend hardly touches."""
    differences = [after - before for before, after in pairwise(values)]
    # With σ² the variance of one value: var(difference) = 2σ², and var(_tail - _head) = 2σ² / quarter.
    return float(stdev(differences) / _quarter(values) ** 0.5)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
