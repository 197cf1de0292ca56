"""`rlhf-hw sft` and `finetune_clm.py`: supervised fine-tuning."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

from backends.shapes import DynamicShapes, ShapePolicy, StaticBuckets
from rlhf_hw.arguments.sft import SFTRun, parse_sft
from rlhf_hw.cli.entry import command
from rlhf_hw.cli.session import Session
from rlhf_hw.data.collate import SFTCollator
from rlhf_hw.data.lengths import row_lengths
from rlhf_hw.data.packing import dataset_concatenation, pack
from rlhf_hw.data.summarization import shorten
from rlhf_hw.data.tokenize import for_sft
from rlhf_hw.models.load import load_policy
from rlhf_hw.trainers import trainer_for
from rlhf_hw.trainers.sft import SFTMixin


@command("sft")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, train, save."""
    run = parse_sft(argv)
    session = Session.open("sft", run, argv)
    name = run.model.model_name_or_path
    session.check_models(
        model_name_or_path=name, config_name=run.model.config_name, tokenizer_name=run.model.tokenizer_name
    )
    tokenizer = session.tokenizer(run.model.tokenizer_name or name, "--tokenizer_name")
    added = add_special_tokens(session, run, tokenizer)
    train, evaluation = tokenized(session, run, tokenizer)
    if run.dry_run:
        session.say(
            "dry run: everything that can be checked without the model is in order; nothing was trained"
        )
        return 0
    with session.run_directory() as directory:
        session.backend.seed_everything(session.args.seed)
        model = load_policy(
            name, session.quantized(session.load_options("--model_name_or_path", trained=True))
        )
        if added and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
        model.config.pad_token_id = tokenizer.pad_token_id
        shapes = shape_policy(session, run, train, model)
        trainer = trainer_for(SFTMixin, session.backend)(
            model=session.with_adapter(model, "CAUSAL_LM"),
            args=session.args,
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=collator(session, tokenizer.pad_token_id, shapes),
            processing_class=tokenizer,
            shapes=shapes,
        )
        session.train(trainer, directory)
    return 0


def add_special_tokens(session: Session, run: SFTRun, tokenizer: Any) -> int:
    """Add `--special_tokens` to the tokenizer; how many of them are new to it."""
    added: int = tokenizer.add_tokens(run.data.special_tokens or [], special_tokens=True)
    if added and run.peft.peft is not None:
        session.say(
            f"--special_tokens: {added} added; their embeddings stay as they begin, because an adapter leaves "
            "embeddings alone (--full_finetune trains them)"
        )
    return added


def tokenized(session: Session, run: SFTRun, tokenizer: Any) -> tuple[Any, Any]:
    """(training set, evaluation set or None) as token ids; packed or concatenated where asked."""
    splits = session.splits("sft")
    data = run.data
    truncate: Literal["left", "right"] = "left" if data.long_examples == "truncate_left" else "right"
    with session.main_process_first("tokenizing"):
        train, report = for_sft(
            shortened(session, run, splits.train, tokenizer),
            tokenizer,
            max_length=data.max_seq_length,
            train_on_inputs=data.train_on_inputs,
            truncate=truncate,
            num_proc=data.preprocessing_num_workers,
        )
        evaluation = None
        if splits.validation is not None:
            evaluation, _ = for_sft(
                shortened(session, run, splits.validation, tokenizer),
                tokenizer,
                max_length=data.max_seq_length,
                truncate=truncate,
                num_proc=data.preprocessing_num_workers,
            )
        if data.dataset_concatenation:
            train = dataset_concatenation(train, data.max_seq_length)
        elif data.packing:
            train = pack(train, data.max_seq_length)
    for line in report.lines():
        session.say(line)
    return train, evaluation


def shortened(session: Session, run: SFTRun, rows: Any, tokenizer: Any) -> Any:
    """Canonical rows; for `--task summarization`, with articles and summaries held to their lengths."""
    if run.data.task != "summarization":
        return rows
    result = shorten(
        rows,
        tokenizer,
        max_source_length=run.data.max_source_length,
        max_target_length=run.data.max_target_length,
        num_proc=run.data.preprocessing_num_workers,
    )
    session.say(
        f"of {len(rows)} rows, {result.articles_cut} articles were cut to --max_source_length and "
        f"{result.summaries_cut} summaries to --max_target_length"
    )
    return result.dataset


def shape_policy(session: Session, run: SFTRun, train: Any, model: Any) -> ShapePolicy:
    """How batches are padded: as the backend wants, or always to the maximum where the flag says so."""
    if not run.data.pad_to_max_length:
        return session.shape_policy(row_lengths(train, "input_ids"), model)
    longest = run.data.max_seq_length
    may_vary = session.backend.shape_policy((longest,)).may_vary
    return DynamicShapes(at_least=longest) if may_vary else StaticBuckets((longest,))


def collator(session: Session, pad_token_id: int, shapes: ShapePolicy) -> SFTCollator:
    """What makes batches of rows. Batches that one process makes for all are cut by rows, which places are not."""
    dispatched = session.args.accelerator_config.dispatch_batches
    return SFTCollator(pad_token_id, shapes.pad_length, with_places=shapes.may_vary and not dispatched)


if __name__ == "__main__":
    sys.exit(main())
