"""`rlhf-hw ppo` and `rl_training.py`: PPO against a reward model or a reward function."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backends.shapes import RolloutShapes
from rlhf_hw.algorithms.kl import AdaptiveKLController
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.ppo import PPORun, parse_ppo
from rlhf_hw.cli.entry import command
from rlhf_hw.cli.session import Session
from rlhf_hw.data.lengths import row_lengths
from rlhf_hw.data.sources import DataSource
from rlhf_hw.data.tokenize import for_prompts
from rlhf_hw.data.unsupervised import unsupervised_blocks
from rlhf_hw.errors import UserError
from rlhf_hw.models.load import check_reward_model, load_policy, load_reward_model, load_sequence_classifier
from rlhf_hw.models.reward_model import RewardModel, RewardStatistics
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.models.wrapping import remove_dropout
from rlhf_hw.rollout.generate import GenerateEngine
from rlhf_hw.trainers import trainer_for
from rlhf_hw.trainers.ppo import PPOMixin, collate_indices, steps_per_update, updates_in
from rlhf_hw.trainers.ptx import BLOCK_SIZE
from rlhf_hw.trainers.save_at import SaveAt
from rlhf_hw.trainers.scoring import (
    FunctionScorer,
    RewardModelScorer,
    Scorer,
    import_function,
    same_tokenizer,
)

#: Answers of each rollout that are kept in samples.jsonl.
SAMPLES_KEPT = 4


@command("ppo")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, train, save policy and value function."""
    run = parse_ppo(argv)
    per_update = steps_per_update(run.stage, run.training.gradient_accumulation_steps)
    session = Session.open("ppo", run, argv, training=counted_in_updates(run, per_update))
    session.check_models(
        model_name=run.model.model_name_or_path,
        config_name=run.model.config_name,
        tokenizer_name=run.model.tokenizer_name,
        reward_model_name=run.stage.reward_model_name,
        reference_model_name=run.stage.reference_model_name,
        critic_model_name=run.stage.critic_model_name,
    )
    function = import_function(run.stage.reward_function) if run.stage.reward_function else None
    statistics = reward_statistics(run)
    world = session.args.world_size
    check_horizon(run, world)
    tokenizer = session.tokenizer(
        run.model.tokenizer_name or run.model.model_name_or_path, "--tokenizer_name"
    )
    prompts, held_out = tokenized(session, run, tokenizer)
    text = unsupervised_text(session, run, tokenizer)
    if run.stage.total_epochs is not None:
        run.stage.steps = math.ceil(run.stage.total_epochs * len(prompts))
    updates = updates_in(run.stage, world)
    session.args.max_steps = updates * per_update
    session.say(
        f"{updates} updates of {run.stage.answers_per_update * world} answers, {per_update} optimizer steps each; logging, "
        "saving and evaluating count in updates"
    )
    if run.dry_run:
        session.say(
            "dry run: everything that can be checked without the models is in order; nothing was trained"
        )
        return 0
    with session.run_directory() as directory:
        session.backend.seed_everything(session.args.seed)
        lengths = [
            length for rows in (prompts, held_out) if rows for length in row_lengths(rows, "input_ids")
        ]
        shapes = session.backend.rollout_shapes(lengths, run.stage.output_max_length)
        scorer = (
            FunctionScorer(function, tokenizer, run.stage.reward_function or "")
            if function is not None
            else reward_scorer(session, run, tokenizer, shapes)
        )
        trainer = trainer_for(PPOMixin, session.backend)(
            model=actor_critic(session, run, tokenizer),
            args=session.args,
            train_dataset=prompts,
            eval_dataset=held_out,
            data_collator=collate_indices,
            processing_class=tokenizer,
            settings=run.stage,
            engine=GenerateEngine(
                tokenizer, shapes, run.stage.batch_size, options=session.backend.generation_options()
            ),
            scorer=scorer,
            shapes=shapes,
            synchronize=session.backend.synchronize,
            statistics=statistics,
            unsupervised=text,
            on_samples=lambda update, rows: directory.log_samples(update * per_update, rows[:SAMPLES_KEPT]),
        )
        if run.stage.save_updates:
            trainer.add_callback(SaveAt([update * per_update for update in run.stage.save_updates]))
        session.train(trainer, directory)
    return 0


def counted_in_updates(run: PPORun, per_update: int) -> dict[str, Any]:
    """Training arguments that count optimizer steps, from flags that count updates."""
    said = run.training.said()
    kwargs: dict[str, Any] = {
        "logging_steps": int(run.training.logging_steps) * per_update,
        "per_device_train_batch_size": run.stage.mini_batch_size,
        "max_steps": per_update,  # settled once the number of processes is known
        "logging_first_step": False,  # the first line is that of the first update
        "save_strategy": "no" if run.stage.save_freq is None else "steps",
    }
    if run.stage.save_freq is not None:
        kwargs["save_steps"] = run.stage.save_freq * per_update
    if said.get("eval_steps") is not None:
        kwargs["eval_steps"] = int(said["eval_steps"]) * per_update
    return kwargs


def check_horizon(run: PPORun, world_size: int) -> None:
    """The adaptive coefficient must not be able to turn negative within one update."""
    answers = run.stage.answers_per_update * world_size
    least = AdaptiveKLController.MAX_ERROR * answers
    if run.stage.adap_kl_ctrl and run.stage.k_beta is None and least >= run.stage.kl_horizon:
        raise UserError(
            f"--kl_horizon: {run.stage.kl_horizon} is too short for {answers} answers an update; it must exceed {least:g}"
        )


def tokenized(session: Session, run: PPORun, tokenizer: Any) -> tuple[Any, Any]:
    """(prompts to train on, held-out prompts or None) as token ids."""
    splits = session.splits("ppo")
    options: dict[str, Any] = {
        "max_prompt_length": run.data.max_prompt_length,
        "truncate": "left" if run.data.long_prompts == "truncate_left" else "drop",
        "num_proc": run.data.preprocessing_num_workers,
    }
    with session.main_process_first("tokenizing"):
        prompts, report = for_prompts(splits.train, tokenizer, **options)
        held_out = None
        if splits.validation is not None:
            held_out = for_prompts(splits.validation, tokenizer, **options).dataset
            held_out = held_out.select(range(min(run.data.eval_prompts, len(held_out))))
            held_out = held_out.add_column("index", list(range(len(held_out))))
    for line in report.lines():
        session.say(line)
    return prompts, held_out


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
    reference = None
    if run.stage.reference_model_name is not None or run.peft.peft is None:
        other = run.stage.reference_model_name
        flag = "--model_name" if other is None else "--reference_model_name"
        # a copy of a policy that trains whole is held as the policy is, or the first KL would not be zero
        frozen = options if other is None else session.load_options(flag, trained=False)
        reference = frozen_on_device(session, load_policy(other or name, frozen))
    roles = ActorCritic(policy, critic, reference, run.stage.temperature)
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


def unsupervised_text(session: Session, run: PPORun, tokenizer: Any) -> Any:
    """Blocks of text to model beside PPO, or None."""
    ppo = run.stage
    if ppo.unsupervised_dataset_name is None:
        return None
    source = DataSource(
        dataset_name=ppo.unsupervised_dataset_name,
        dataset_config_name=ppo.unsupervised_dataset_config_name,
        cache_dir=run.data.dataset_cache_directory,
        token=session.token if isinstance(session.token, str) else None,
    )
    with session.main_process_first("reading unsupervised text"):
        size = min(BLOCK_SIZE, tokenizer.model_max_length)
        blocks = unsupervised_blocks(source, tokenizer, size)
    session.say(
        f"unsupervised text: {len(blocks)} blocks of {size} tokens, weight {ppo.unsup_coef:g}; "
        f"{ppo.mini_batch_size} beside each micro-batch"
    )
    return blocks


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
            "rlhf-hw reward, give --reward_mean and --reward_std, or leave the flag out"
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
        frozen_on_device(session, model),
        tokenizer,
        None if shared else own,
        batch_size=4 * run.stage.mini_batch_size,
        pad_length=shapes.sequences.pad_length,
    )
    session.say(f"reward: {name}" + ("" if shared else ", with a tokenizer of its own"))
    return scorer


def has_tokenizer(name: str) -> bool:
    """Whether a model directory brings a tokenizer; hub models are taken to."""
    directory = Path(name)
    return not directory.is_dir() or (directory / "tokenizer_config.json").is_file()


def frozen_on_device(session: Session, model: Any) -> Any:
    """A model that is only asked, never trained."""
    return model.eval().requires_grad_(False).to(session.args.device)


if __name__ == "__main__":
    sys.exit(main())
