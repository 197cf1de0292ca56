"""Metrics as the three stages log them: believable curves with noise, made from a fixed seed."""

import math
import random

import pytest


def sft_rows(steps=300, every=1, eval_every=30, seed=0):
    rng = random.Random(seed)
    rows = []
    for step in range(every, steps + 1, every):
        true_loss = 1.6 + 2.4 * math.exp(-step / (steps / 6))
        rows.append(
            {
                "step": step,
                "epoch": 3 * step / steps,
                "loss": true_loss + rng.gauss(0, 0.12),
                "grad_norm": abs(rng.gauss(1.2, 0.3)),
                "learning_rate": 2e-4 * min(step / 20, (1 + math.cos(math.pi * step / steps)) / 2),
            }
        )
        if step % eval_every == 0:
            rows.append(
                {"step": step, "eval_loss": true_loss + 0.1, "eval_perplexity": math.exp(true_loss + 0.1)}
            )
    return rows


def reward_rows(steps=200, eval_every=25, seed=1):
    rng = random.Random(seed)
    rows = []
    for step in range(1, steps + 1):
        skill = 1 - math.exp(-step / (steps / 5))
        rows.append(
            {
                "step": step,
                "loss": 0.69 - 0.45 * skill + rng.gauss(0, 0.05),
                "accuracy": min(1.0, max(0.0, 0.5 + 0.42 * skill + rng.gauss(0, 0.07))),
                "margin": 2.1 * skill + rng.gauss(0, 0.3),
                "chosen_mean": 1.3 * skill + 0.1 * math.sin(step),
                "rejected_mean": -0.8 * skill + 0.1 * math.cos(step),
            }
        )
        if step % eval_every == 0:
            rows.append(
                {
                    "step": step,
                    "eval_loss": 0.70 - 0.42 * skill,
                    "eval_accuracy": 0.5 + 0.38 * skill,
                    "eval_margin": 1.8 * skill,
                    "eval_chosen_mean": 1.1 * skill,
                    "eval_rejected_mean": -0.7 * skill,
                }
            )
    return rows


def ppo_rows(updates=200, seed=2, lift=3.0):
    rng = random.Random(seed)
    rows, kl_coef = [], 0.2
    for update in range(1, updates + 1):
        skill = 1 - math.exp(-update / (updates / 3))
        kl = 7.0 * skill + abs(rng.gauss(0, 0.5))
        kl_coef *= 1 + max(-0.2, min(0.2, kl / 6 - 1)) * 0.02
        score = -1.0 + lift * skill + rng.gauss(0, 0.35)
        length = 48 + 20 * skill + rng.gauss(0, 4)
        rows.append(
            {
                "step": update * 4,
                "loss": 0.4 - 0.3 * skill,
                "objective/kl": kl,
                "objective/kl_coef": kl_coef,
                "objective/entropy": 2.6 - 0.9 * skill + rng.gauss(0, 0.08),
                "objective/scores": score,
                "objective/non_score_reward": -kl_coef * kl,
                "objective/rlhf_reward": score - kl_coef * kl,
                "policy/loss": -0.02 - 0.01 * math.sin(update),
                "policy/approxkl": 0.01 + 0.02 * abs(rng.gauss(0, 0.5)),
                "policy/clipfrac": min(1.0, 0.08 + 0.04 * abs(rng.gauss(0, 1))),
                "policy/ratio": 1 + rng.gauss(0, 0.01),
                "value/loss": 0.1 + 2 * math.exp(-update / 15) + abs(rng.gauss(0, 0.04)),
                "value/clipfrac": 0.03 + 0.02 * abs(rng.gauss(0, 1)),
                "value/explained_variance": 0.75 - 3 * math.exp(-update / 12) + rng.gauss(0, 0.05),
                "response/length_mean": length,
                "response/length_min": max(1, length - 35 + rng.gauss(0, 3)),
                "response/length_max": min(128, length + 45 + rng.gauss(0, 5)),
                "response/eos_rate": min(1.0, 0.7 + 0.25 * skill + rng.gauss(0, 0.03)),
                "time/rollout": 5.5 + rng.gauss(0, 0.3),
                "time/score": 0.8 + rng.gauss(0, 0.05),
                "time/forward": 1.1 + rng.gauss(0, 0.05),
                "time/advantage": 0.05,
                "time/optimise": 2.9 + rng.gauss(0, 0.2),
                "speed/tokens_per_second": 410 + 25 * rng.gauss(0, 1),
                "speed/samples_per_second": 7.2,
                "ppo/update": update,
                "ppo/episodes": 64 * update,
                "ppo/skipped_minibatches": 0,
                "ppo/early_stopped": 0,
            }
        )
    return rows


@pytest.fixture
def synthetic():
    """The makers of believable rows, by stage."""
    return {"sft": sft_rows, "reward": reward_rows, "ppo": ppo_rows}
