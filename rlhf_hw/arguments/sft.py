"""The flags of supervised fine-tuning (`finetune_clm.py`, `rlhf-hw sft`)."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.checks import at_least, check_run
from rlhf_hw.arguments.data import SFTDataArguments
from rlhf_hw.arguments.hardware import HardwareArguments, without_rollouts
from rlhf_hw.arguments.model import ModelArguments
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.run import Run, assemble
from rlhf_hw.arguments.sharding import ShardingArguments
from rlhf_hw.arguments.training import TrainingFlags, training_flags_class
from rlhf_hw.errors import UserError


@dataclass(kw_only=True)
class SFTArguments:
    """What belongs to this stage alone."""

    _argument_group_name = "Supervised fine-tuning"

    do_lm_eval: bool = HfArg(
        default=False,
        help="No effect here: the original called the lm-eval harness after training. Run it on the saved directory: "
        "lm_eval --model hf --model_args pretrained=OUTPUT_DIR --tasks ...",
    )
    lm_eval_tasks: list[str] | None = HfArg(
        default=None, help="No effect here; the tasks that --do_lm_eval of the original ran."
    )


@dataclass(frozen=True, kw_only=True)
class SFTRun(Run):
    """The settings of a supervised fine-tuning."""

    data: SFTDataArguments
    stage: SFTArguments

    @property
    def ragged_batches(self) -> bool:
        data = self.data
        return not (data.packing or data.dataset_concatenation or data.pad_to_max_length)


def sft_parser() -> StageParser:
    """The parser of this stage."""
    return StageParser(
        "sft",
        [
            ModelArguments,
            PeftArguments,
            SFTDataArguments,
            SFTArguments,
            HardwareArguments,
            ShardingArguments,
            training_flags_class({}, required=["output_dir"]),
        ],
        description="Supervised fine-tuning: teach a language model to answer as the data does.",
        example="rlhf-hw sft --model_name_or_path gpt2 --train_file data.jsonl --output_dir runs/sft",
    )


def parse_sft(argv: Sequence[str] | None = None) -> SFTRun:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    parser = sft_parser()
    parsed = parser.parse(argv)
    training, stage = parsed[TrainingFlags], parsed[SFTArguments]
    if not (training.do_train or training.do_eval):
        training.do_train = True
    notes = without_rollouts(parsed.given)
    if stage.do_lm_eval:
        notes.append("--do_lm_eval: no effect here; run lm_eval on the saved directory")
    if "num_beams" in parsed.given:
        notes.append("--num_beams: no effect here; evaluation is by perplexity")
    return parser.checked(assemble(SFTRun, parsed, SFTDataArguments, SFTArguments, notes), check_sft)


def check_sft(run: SFTRun) -> None:
    """Contradictions in the settings of this stage.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    check_run(run)
    at_least(1, run.training, "per_device_train_batch_size")
    at_least(2, run.data, "max_seq_length")
    at_least(1, run.data, "max_source_length", "max_target_length", "num_beams")
    if run.data.packing and run.data.dataset_concatenation:
        raise UserError("--packing and --dataset_concatenation: both are true; give one")
