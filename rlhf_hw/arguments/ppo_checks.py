"""Contradictions among the flags of PPO, found before a device or a model is touched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlhf_hw.arguments.checks import at_least, check_run
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from rlhf_hw.arguments.ppo import PPOArguments, PPORun


def check_ppo(run: PPORun) -> None:
    """Contradictions in the settings of this stage.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    check_run(run)
    _check_reward(run.stage)
    _check_batches(run.stage, run.training.gradient_accumulation_steps)
    _check_duration(run.stage)
    _check_numbers(run)
    _check_critic(run)
    _check_beside_ppo(run.stage)


def _check_reward(ppo: PPOArguments) -> None:
    if (ppo.reward_model_name is None) == (ppo.reward_function is None):
        found = "neither was" if ppo.reward_model_name is None else "both were"
        raise UserError(f"--reward_model_name and --reward_function: {found} given; give exactly one")
    if ppo.reward_function is not None:
        module, _, function = ppo.reward_function.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), function]):
            raise UserError(
                f"--reward_function: got {ppo.reward_function!r}, expected package.module:function"
            )
        if ppo.normalize_scores and ppo.reward_mean is None:
            raise UserError(
                "--normalize_scores: needs the statistics of a --reward_model_name, or --reward_mean and --reward_std"
            )
    if ppo.use_score_norm and not ppo.use_score_scaling:
        raise UserError("--use_score_norm: acts with --use_score_scaling only; give that too")
    if (ppo.reward_mean is None) != (ppo.reward_std is None):
        found = "--reward_std" if ppo.reward_mean is None else "--reward_mean"
        raise UserError(f"{found}: was given alone; give --reward_mean and --reward_std")
    if ppo.reward_mean is not None and not ppo.normalize_scores:
        raise UserError("--reward_mean: acts with --normalize_scores only; give that too")
    if ppo.reward_std is not None and ppo.reward_std <= 0:
        raise UserError(f"--reward_std: got {ppo.reward_std}, expected a number above 0")
    if ppo.truncate_after is not None and ppo.truncate_tokens is None:
        raise UserError("--truncate_after: acts with --truncate_tokens only; give that too")


def _check_critic(run: PPORun) -> None:
    """The value function: from where, and what of it trains."""
    ppo = run.stage
    if ppo.critic_model_name is not None and ppo.value_model == "trunk":
        raise UserError(
            "--critic_model_name: is a model of its own; give --value_model separate, or leave it out"
        )
    if ppo.init_value_with_reward:
        if ppo.reward_model_name is None:
            raise UserError(
                "--init_value_with_reward: there is no reward model; give --reward_model_name, or "
                "--init_value_with_reward false"
            )
        if ppo.critic_model_name is not None:
            raise UserError(
                f"--init_value_with_reward: --critic_model_name {ppo.critic_model_name} was given too; give one"
            )
    for name in ("critic_lora_rank", "critic_lora_target_modules"):
        if getattr(ppo, name) is not None and not ppo.separate_critic:
            raise UserError(f"--{name}: the value head has no layers to adapt; give --value_model separate")
    if run.model.quantization_bits() is not None and ppo.separate_critic and ppo.critic_lora_rank == 0:
        raise UserError("--critic_lora_rank: 0 trains the value model whole, and quantized weights cannot be")


def _check_beside_ppo(ppo: PPOArguments) -> None:
    """Text to go on modelling, and the average of the weights."""
    if ppo.unsupervised_dataset_config_name is not None and ppo.unsupervised_dataset_name is None:
        raise UserError("--unsupervised_dataset_config_name: of which data? give --unsupervised_dataset_name")
    if not 0 <= ppo.ema_decay < 1:
        raise UserError(f"--ema_decay: got {ppo.ema_decay}, expected a number from 0 to below 1")


def _check_batches(ppo: PPOArguments, accumulation: int) -> None:
    at_least(
        1, ppo, "steps", "batch_size", "generation_batches", "mini_batch_size", "ppo_epochs", "save_freq"
    )
    step = ppo.mini_batch_size * accumulation
    if ppo.answers_per_update % step:
        batches = "" if ppo.generation_batches == 1 else f" x --generation_batches {ppo.generation_batches}"
        raise UserError(
            f"--batch_size: {ppo.batch_size}{batches} is not a multiple of --mini_batch_size {ppo.mini_batch_size} x "
            f"--gradient_accumulation_steps {accumulation} = {step}; change one of them"
        )


def _check_duration(ppo: PPOArguments) -> None:
    if ppo.total_epochs is not None and not 0 < ppo.total_epochs < math.inf:
        raise UserError(f"--total_epochs: got {ppo.total_epochs}, expected a number above 0")
    if ppo.save_updates and min(ppo.save_updates) < 1:
        raise UserError(f"--save_updates: got {min(ppo.save_updates)}, expected numbers of updates, from 1")


def _check_numbers(run: PPORun) -> None:
    ppo = run.stage
    at_least(1, run.data, "max_prompt_length", "eval_prompts")
    at_least(1, ppo, "output_max_length", "kl_horizon")
    at_least(0, ppo, "output_min_length", "top_k", "init_kl_coef", "vf_coef", "missing_eos_penalty")
    at_least(0, ppo, "truncate_after", "min_answer_tokens", "num_padding_at_beginning", "unsup_coef")
    at_least(0, ppo, "critic_learning_rate", "critic_weight_decay", "critic_lora_rank")
    if ppo.output_min_length > ppo.output_max_length:
        raise UserError(
            f"--output_min_length: {ppo.output_min_length} is above --output_max_length {ppo.output_max_length}"
        )
    for name in (
        "temperature",
        "clip_range",
        "clip_range_value",
        "kl_target",
        "target_kl",
        "ratio_threshold",
    ):
        if getattr(ppo, name) <= 0:
            raise UserError(f"--{name}: got {getattr(ppo, name)}, expected a number above 0")
    for name in ("score_clip", "k_beta"):
        if getattr(ppo, name) is not None and getattr(ppo, name) <= 0:
            raise UserError(f"--{name}: got {getattr(ppo, name)}, expected a number above 0")
    if ppo.k_beta is not None and ppo.k_beta >= 5:
        raise UserError(f"--k_beta: got {ppo.k_beta}; from 5 on the weight of KL could turn negative")
    for name in ("gamma", "lam"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise UserError(f"--{name}: got {getattr(ppo, name)}, expected a number from 0 to 1")
    if not 0 < ppo.top_p <= 1:
        raise UserError(f"--top_p: got {ppo.top_p}, expected a number above 0 and at most 1")
