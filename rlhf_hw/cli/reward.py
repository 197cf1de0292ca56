"""`rlhf-hw reward` and `reward_modeling.py`: reward modelling."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.cli.entry import command
from rlhf_hw.cli.session import Session
from rlhf_hw.data.collate import PairCollator
from rlhf_hw.data.lengths import row_lengths
from rlhf_hw.data.tokenize import for_reward
from rlhf_hw.errors import UserError
from rlhf_hw.models.load import load_sequence_classifier
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.trainers import trainer_for
from rlhf_hw.trainers.reward import RewardMixin

#: Fewer evaluation pairs than this say little of the scores' spread (one says nothing): training pairs then measure it,
FEWEST_STATISTICS_PAIRS = 32
#: as many of them as this.
STATISTICS_PAIRS = 256


@command("reward")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, train, save the model with its scores' statistics."""
    run = parse_reward(argv)
    session = Session.open("reward", run, argv)
    if session.args.accelerator_config.dispatch_batches:
        raise UserError(
            "--dispatch_batches: a batch holds the chosen answers and then the rejected ones, which would go to different "
            "processes; leave it out"
        )
    name = run.model.model_name_or_path
    session.check_models(
        model_name_or_path=name, config_name=run.model.config_name, tokenizer_name=run.model.tokenizer_name
    )
    tokenizer = session.tokenizer(run.model.tokenizer_name or name, "--tokenizer_name")
    splits = session.splits("reward")
    options: dict[str, Any] = {
        "max_length": run.data.max_length,
        "num_proc": run.data.preprocessing_num_workers,
    }
    with session.main_process_first("tokenizing"):
        train, report = for_reward(splits.train, tokenizer, **options)
        evaluation = (
            for_reward(splits.validation, tokenizer, **options).dataset if splits.validation else None
        )
    for line in report.lines():
        session.say(line)
    if run.dry_run:
        session.say(
            "dry run: everything that can be checked without the model is in order; nothing was trained"
        )
        return 0
    with session.run_directory() as directory:
        session.backend.seed_everything(session.args.seed)
        load = session.quantized(session.load_options("--model_name_or_path", trained=True))
        classifier = load_sequence_classifier(name, load, tokenizer.pad_token_id)
        shapes = session.shape_policy(
            row_lengths(train, "chosen_input_ids", "rejected_input_ids"), classifier
        )
        trainer = trainer_for(RewardMixin, session.backend)(
            model=RewardModel(session.with_adapter(classifier, "SEQ_CLS")),
            args=session.args,
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=PairCollator(tokenizer.pad_token_id, shapes.pad_length),
            processing_class=tokenizer,
            shapes=shapes,
            rm_loss=run.stage.rm_loss,
        )
        session.train(trainer, directory)
        if not session.args.do_train:
            return 0  # the statistics belong to the weights that are saved: those of a training
        statistics = trainer.score_statistics(statistics_pairs(train, evaluation))
        if session.is_main:
            statistics.save(session.args.output_dir)
        session.say(f"chosen scores: mean {statistics.mean:.4f}, standard deviation {statistics.std:.4f}")
    return 0


def statistics_pairs(train: Any, evaluation: Any) -> Any:
    """The pairs whose chosen scores are measured: those kept for evaluation, or some to train on if they are few."""
    if evaluation is not None and len(evaluation) >= FEWEST_STATISTICS_PAIRS:
        return evaluation
    return train.select(range(min(len(train), STATISTICS_PAIRS)))


if __name__ == "__main__":
    sys.exit(main())
