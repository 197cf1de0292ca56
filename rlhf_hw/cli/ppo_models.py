"""The models of `rlhf-hw ppo`: policy, value function, reference and reward model, as its flags name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backends.shapes import RolloutShapes
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.ppo import PPORun
from rlhf_hw.cli.session import Session
from rlhf_hw.errors import UserError
from rlhf_hw.models.load import check_reward_model, load_policy, load_reward_model, load_sequence_classifier
from rlhf_hw.models.reward_model import RewardModel, RewardStatistics
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.models.wrapping import remove_dropout
from rlhf_hw.trainers.base import replay_passes
from rlhf_hw.trainers.scoring import RewardModelScorer, Scorer, same_tokenizer


def actor_critic(session: Session, run: PPORun, tokenizer: Any) -> ActorCritic:
    """Policy, value function and reference, as separate or as shared as the flags say."""
    name = run.model.model_name_or_path
    options = session.load_options("--model_name", trained=True)
    policy = load_policy(name, session.quantized(options))
    policy.config.pad_token_id = tokenizer.pad_token_id
    policy = session.with_adapter(policy, "CAUSAL_LM")
    critic = None
    if run.stage.separate_critic:
        critic = separate_critic(session, run, tokenizer)
    reference, offloaded = None, run.sharding.offload_reference_model
    if run.stage.reference_model_name is not None or run.peft.peft is None:
        other = run.stage.reference_model_name
        flag = "--model_name" if other is None else "--reference_model_name"
        # a copy of a policy that trains whole is held as the policy is, or the first KL would not be zero
        frozen = options if other is None else session.load_options(flag, trained=False)
        reference = frozen_on_device(session, load_policy(other or name, frozen), offloaded=offloaded)
    roles = ActorCritic(policy, critic, reference, run.stage.temperature, offloaded)
    for model in (roles, reference):
        if model is not None:
            remove_dropout(model)
    shared = [
        "reference: the policy without its adapter" if reference is None else "reference: a model of its own",
        "value: a head on the policy's trunk" if critic is None else "value: a model of its own",
    ]
    session.say("; ".join(shared))
    return roles


def separate_critic(session: Session, run: PPORun, tokenizer: Any) -> RewardModel:
    """A value model of its own: the reward model, `--critic_model_name`, or the policy with a head that starts at zero."""
    ppo, model_name = run.stage, run.model.model_name_or_path
    flag, name = "--critic_model_name", ppo.critic_model_name
    if ppo.init_value_with_reward:
        flag, name = "--reward_model_name", ppo.reward_model_name
    if name is None:
        flag = "--model_name"
    else:
        check_tokenizer(session, name, flag, tokenizer)
    peft = critic_adapter(run)
    options = session.load_options(flag, trained=True)
    if peft.peft is None:
        options = replace(options, dtype=torch.float32)
    elif run.model.quantization_bits() is not None:
        options = session.quantized(options)
    classifier = load_sequence_classifier(name or model_name, options, tokenizer.pad_token_id)
    if name is None:
        torch.nn.init.zeros_(classifier.score.weight)
    return RewardModel(session.with_adapter(classifier, "SEQ_CLS", peft))


def critic_adapter(run: PPORun) -> PeftArguments:
    """What of a separate value model is trained: as of the policy, but for the flags of its own."""
    ppo, peft = run.stage, run.peft
    if ppo.critic_lora_rank == 0:
        return replace(peft, full_finetune=True)
    if ppo.critic_lora_rank is not None:
        peft = replace(peft, full_finetune=False, peft="lora", lora_rank=ppo.critic_lora_rank)
    if ppo.critic_lora_target_modules is not None:
        peft = replace(peft, lora_target_modules=ppo.critic_lora_target_modules, lora_all_linear=False)
    return peft


def check_tokenizer(session: Session, name: str, flag: str, tokenizer: Any) -> None:
    """A value model reads the policy's tokens: they must mean the same to it."""
    if has_tokenizer(name) and not same_tokenizer(tokenizer, session.tokenizer(name, flag)):
        raise UserError(
            f"{flag}: {name} has another tokenizer than the policy, whose tokens a value model reads; leave "
            "--init_value_with_reward or --critic_model_name out"
        )


def reward_statistics(run: PPORun) -> RewardStatistics | None:
    """What scores are normalised by: as given, or as saved with the reward model, if it was.

    Raises:
        UserError: `--normalize_scores` cannot act.
    """
    name, ppo = run.stage.reward_model_name, run.stage
    if name is not None:
        check_reward_model(name, "--reward_model_name")
    if ppo.reward_mean is not None and ppo.reward_std is not None:
        return RewardStatistics(ppo.reward_mean, ppo.reward_std, count=0)
    statistics = None if name is None else RewardStatistics.load(name)
    if ppo.normalize_scores and (statistics is None or statistics.std <= 0):
        raise UserError(
            f"--normalize_scores: {name} has no reward_statistics.json, or one without spread; train it with "
            "rlhf-hw reward, give --reward_mean and --reward_std, or --normalize_scores false"
        )
    return statistics


def reward_scorer(session: Session, run: PPORun, tokenizer: Any, shapes: RolloutShapes) -> Scorer:
    """The reward model with its tokenizer."""
    name = run.stage.reward_model_name
    assert name is not None
    options = session.load_options("--reward_model_name", trained=False)
    own = session.tokenizer(name, "--reward_model_name") if has_tokenizer(name) else tokenizer
    shared = same_tokenizer(tokenizer, own)
    model = load_reward_model(name, replace(options, quantization=None), own.pad_token_id)
    scorer = RewardModelScorer(
        frozen_on_device(session, model, offloaded=run.sharding.offload_reward_model),
        tokenizer,
        None if shared else own,
        batch_size=4 * run.stage.mini_batch_size,
        pad_length=shapes.sequences.pad_length,
        offloaded=run.sharding.offload_reward_model,
    )
    session.say(f"reward: {name}" + ("" if shared else ", with a tokenizer of its own"))
    return scorer


def has_tokenizer(name: str) -> bool:
    """Whether a model directory brings a tokenizer; hub models are taken to."""
    directory = Path(name)
    return not directory.is_dir() or (directory / "tokenizer_config.json").is_file()


def frozen_on_device(session: Session, model: Any, *, offloaded: bool = False) -> Any:
    """A model that is only asked, never trained; in the host's memory where it is `offloaded`."""
    model = model.eval().requires_grad_(False)
    if not offloaded:
        model = model.to(session.args.device)
    replay_passes(session.backend, model)
    return model
