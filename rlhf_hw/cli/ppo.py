"""`rlhf-hw ppo` and `rl_training.py`: PPO against a reward model or a reward function."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_hw.algorithms.kl import AdaptiveKLController
from rlhf_hw.arguments.ppo import PPORun, parse_ppo
from rlhf_hw.cli.entry import command
from rlhf_hw.cli.ppo_models import (
    actor_critic,
    check_critic_tokenizer,
    reward_scorer,
    reward_statistics,
)
from rlhf_hw.cli.session import Session
from rlhf_hw.data.lengths import row_lengths
from rlhf_hw.data.sources import DataSource
from rlhf_hw.data.tokenize import for_prompts
from rlhf_hw.data.unsupervised import unsupervised_blocks
from rlhf_hw.errors import UserError
from rlhf_hw.models.base_sharing import Sharing, decide_sharing, take_over_adapter
from rlhf_hw.models.reward_model import RewardStatistics
from rlhf_hw.rollout.choice import check_engine, choose_engine
from rlhf_hw.trainers import trainer_for
from rlhf_hw.trainers.ppo import PPOMixin, collate_indices, steps_per_update, updates_in
from rlhf_hw.trainers.ptx import BLOCK_SIZE
from rlhf_hw.trainers.save_at import SaveAt
from rlhf_hw.trainers.scoring import FunctionScorer, import_function, same_tokenizer

#: Answers of each rollout that are kept in samples.jsonl.
SAMPLES_KEPT = 4


@dataclass
class Preparation:
    """What is known before the models load: settings that were checked, the session, the tokenizer."""

    run: PPORun
    session: Session
    tokenizer: Any
    function: Callable[..., Any] | None
    statistics: RewardStatistics | None
    per_update: int  #: optimizer steps in an update
    sharing: Sharing

    @classmethod
    def of(cls, run: PPORun, argv: Sequence[str] | None) -> Preparation:
        """Open the session, and refuse what cannot be."""
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
        check_engine(run.stage.rollout_engine, session.backend)
        function = import_function(run.stage.reward_function) if run.stage.reward_function else None
        statistics = reward_statistics(run)
        check_horizon(run, session.args.world_size)
        tokenizer = session.tokenizer(
            run.model.tokenizer_name or run.model.model_name_or_path, "--tokenizer_name"
        )
        check_critic_tokenizer(session, run, tokenizer)
        sharing = decide_sharing(
            run,
            lambda name: not same_tokenizer(tokenizer, session.tokenizer(name, "--reward_model_name")),
        )
        take_over_adapter(run, sharing)
        for line in sharing.lines():
            session.say(line)
        return cls(run, session, tokenizer, function, statistics, per_update, sharing)

    def count_updates(self) -> int:
        """Updates until `--steps` samples were answered; the trainer will run for their optimizer steps."""
        updates = updates_in(self.run.stage, self.session.args.world_size)
        self.session.args.max_steps = updates * self.per_update
        return updates


@command("ppo")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, train, save policy and value function."""
    run = parse_ppo(argv)
    ready = Preparation.of(run, argv)
    session, per_update = ready.session, ready.per_update
    prompts, held_out = tokenized(session, run, ready.tokenizer)
    text = unsupervised_text(session, run, ready.tokenizer)
    if run.stage.total_epochs is not None:
        run.stage.steps = math.ceil(run.stage.total_epochs * len(prompts))
    updates = ready.count_updates()
    session.say(
        f"{updates} updates of {run.stage.answers_per_update * session.args.world_size} answers, {per_update} "
        "optimizer steps each; logging, saving and evaluating count in updates"
    )
    if run.dry_run:
        session.say(
            "dry run: everything that can be checked without the models is in order; nothing was trained"
        )
        return 0
    with session.run_directory() as directory:
        session.backend.seed_everything(session.args.seed)
        trainer = make_trainer(
            ready,
            lengths=[
                length for rows in (prompts, held_out) if rows for length in row_lengths(rows, "input_ids")
            ],
            train_dataset=prompts,
            eval_dataset=held_out,
            unsupervised=text,
            on_samples=lambda update, rows: directory.log_samples(update * per_update, rows[:SAMPLES_KEPT]),
        )
        if run.stage.save_updates:
            trainer.add_callback(SaveAt([update * per_update for update in run.stage.save_updates]))
        session.train(trainer, directory)
    return 0


def make_trainer(ready: Preparation, *, lengths: Sequence[int], **options: Any) -> Any:
    """The trainer with its models loaded. `lengths`: of the prompts, in tokens. `options`: `PPOMixin`'s."""
    run, session, tokenizer = ready.run, ready.session, ready.tokenizer
    shapes = session.backend.rollout_shapes(lengths, run.stage.output_max_length)
    roles = actor_critic(session, run, tokenizer, ready.sharing)
    scorer = (
        FunctionScorer(ready.function, tokenizer, run.stage.reward_function or "")
        if ready.function is not None
        else reward_scorer(session, run, tokenizer, shapes, ready.sharing, roles)
    )
    engine = choose_engine(
        run.stage.rollout_engine,
        session.backend,
        roles.policy,
        tokenizer,
        shapes,
        batch_size=run.stage.batch_size,
        say=session.say,
    )
    return trainer_for(PPOMixin, session.backend)(
        model=roles,
        args=session.args,
        data_collator=collate_indices,
        processing_class=tokenizer,
        settings=run.stage,
        engine=engine,
        scorer=scorer,
        shapes=shapes,
        synchronize=session.backend.synchronize,
        statistics=ready.statistics,
        **options,
    )


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


if __name__ == "__main__":
    sys.exit(main())
