"""The flags of reward modelling (`reward_modeling.py`, `rlhf-hw reward`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.checks import at_least, check_run
from rlhf_hw.arguments.data import RewardDataArguments
from rlhf_hw.arguments.hardware import HardwareArguments, without_rollouts
from rlhf_hw.arguments.model import ModelArguments
from rlhf_hw.arguments.options import with_defaults
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.run import Run, assemble
from rlhf_hw.arguments.sharding import ShardingArguments
from rlhf_hw.arguments.training import training_flags_class
from rlhf_hw.errors import UserError

RewardModelArguments = with_defaults(ModelArguments, {"torch_dtype": "bfloat16"})
RewardPeftArguments = with_defaults(
    PeftArguments, {"lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.1, "lora_all_linear": True}
)
RewardData = with_defaults(
    RewardDataArguments, {"dataset_name": ["Intel/orca_dpo_pairs"], "validation_split_percentage": 2}
)

LEADING_PADDING_HELP = (
    "No effect here: DeepSpeed-Chat looks for an answer's end by the padding id, and must be told of the one that OPT's "
    "rows begin with. Here the attention mask tells what is padding."
)


@dataclass(kw_only=True)
class RewardArguments:
    """What belongs to this stage alone."""

    _argument_group_name = "Reward modelling"

    rm_loss: Literal["last_token", "tokenwise", "cross_entropy"] = HfArg(
        default="last_token",
        help="last_token: -log sigmoid of the difference of the two answers' scores. tokenwise: the mean of that over the "
        "tokens from the first that differs on (DeepSpeed-Chat, without its padding). cross_entropy: of the preference "
        "given the difference (AlpacaFarm); the same number as last_token. A data column `margin` is taken off the difference.",
    )
    num_padding_at_beginning: int = HfArg(default=0, help=LEADING_PADDING_HELP)


def leading_padding_note(tokens: int) -> list[str]:
    """A line on --num_padding_at_beginning, where it was set."""
    if not tokens:
        return []
    return [
        f"--num_padding_at_beginning {tokens}: without effect, the attention mask tells where an answer ends"
    ]


@dataclass(frozen=True, kw_only=True)
class RewardRun(Run):
    """The settings of a reward-model training."""

    data: RewardDataArguments
    stage: RewardArguments

    @property
    def ragged_batches(self) -> bool:
        return True


def reward_parser() -> StageParser:
    """The parser of this stage."""
    return StageParser(
        "reward",
        [
            RewardModelArguments,
            RewardPeftArguments,
            RewardData,
            RewardArguments,
            HardwareArguments,
            ShardingArguments,
            training_flags_class({"do_train": True, "do_eval": True}, required=["output_dir"]),
        ],
        description="Reward modelling: teach a model which of two answers is the better one.",
        example="rlhf-hw reward --model_name_or_path gpt2 --train_file pairs.jsonl --output_dir runs/reward",
    )


def parse_reward(argv: Sequence[str] | None = None) -> RewardRun:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    parser = reward_parser()
    parsed = parser.parse(argv)
    notes = leading_padding_note(parsed[RewardArguments].num_padding_at_beginning)
    notes = [*notes, *without_rollouts(parsed.given)]
    run = assemble(RewardRun, parsed, RewardDataArguments, RewardArguments, notes)
    return parser.checked(run, check_reward)


def check_reward(run: RewardRun) -> None:
    """Contradictions in the settings of this stage.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    check_run(run)
    at_least(1, run.training, "per_device_train_batch_size")
    at_least(2, run.data, "max_length")
    at_least(0, run.stage, "num_padding_at_beginning")
    if run.peft.peft not in ("lora", None):
        raise UserError(f"--peft: got {run.peft.peft}, but a reward model takes lora or none")
    if (
        getattr(run.training, "train_sampling_strategy", None) == "batch_rebalance"
    ):  # not in every transformers
        raise UserError(
            "--train_sampling_strategy batch_rebalance: transformers measures no pairs; give group_by_length or random"
        )
