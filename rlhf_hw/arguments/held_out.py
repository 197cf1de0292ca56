"""The flags of measuring a model on data: a reward model's accuracy (`rw_eval.py`), a language model's perplexity."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.checks import at_least
from rlhf_hw.arguments.evaluation import AskingArguments, Tool, parse_tool
from rlhf_hw.errors import UserError


@dataclass(kw_only=True)
class HeldOutArguments(AskingArguments):
    """Which model is measured on which data."""

    _argument_group_name = "Measuring"

    model_name_or_path: str = HfArg(help="The model: a hub name or directory, whole or an adapter. Required.")
    dataset_name: list[str] = HfArg(
        default_factory=list,
        aliases=["--data_path"],
        help="One data set or several: hub names, local directories or files. Of each its held-out rows where it has some, "
        "else all.",
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the hub data set.")
    data_format: str | None = HfArg(
        default=None,
        help="The format the rows are in, or a YAML file that describes them. Not said: told by the columns.",
    )
    by: str | None = HfArg(
        default=None,
        help="A column of the data set: the result for each of its values too, over all rows as they come.",
    )
    task: Literal["completion", "chat"] = HfArg(
        default="completion", help="chat: text prompts become chat messages, in the model's template."
    )
    max_samples: int | None = HfArg(default=None, help="Only so many rows of each set, the first.")
    max_length: int = HfArg(
        default=512, aliases=["--max_seq_len"], help="Longest prompt with answer, in tokens."
    )
    batch_size: int = HfArg(
        default=16, aliases=["--bsz", "--per_device_eval_batch_size"], help="Rows a forward pass."
    )
    max_malformed_fraction: float = HfArg(
        default=0.01, help="Stop if more than this fraction of the rows cannot be read."
    )
    dataset_cache_directory: str | None = HfArg(default=None, help="Directory for converted data.")
    output_path: str | None = HfArg(
        default=None, help="A JSON file for the results. Not said: they are only shown."
    )
    overwrite: bool = HfArg(default=False, help="Replace --output_path where it is there already.")


@dataclass(kw_only=True)
class ScoreArguments(HeldOutArguments):
    """What measuring a reward model asks in addition."""

    num_padding_at_beginning: int | None = HfArg(
        default=None,
        help="No effect here: where a text begins and ends is told by the attention mask, for OPT's padding (1) and LLaMA's "
        "(0) alike.",
    )
    show: int = HfArg(default=5, help="Pairs shown with their scores.")


@dataclass(kw_only=True)
class PerplexityArguments(HeldOutArguments):
    """What measuring a language model asks in addition."""

    train_on_inputs: bool = HfArg(
        default=False, help="Count the prompt's tokens too, not the answer's alone."
    )


def parse_score(argv: Sequence[str] | None = None) -> Tool[ScoreArguments]:
    """The settings of `rlhf-hw score`."""
    return parse_tool(
        "score",
        ScoreArguments,
        argv,
        check_held_out,
        description="Scores that a reward model gives to good and bad answers, and how often it prefers the good one: on "
        "four pairs of our own, or on a data set, in all and by subset.",
        example="rlhf-hw score --model_name_or_path runs/reward --dataset_name pairs.jsonl --by source",
    )


def parse_perplexity(argv: Sequence[str] | None = None) -> Tool[PerplexityArguments]:
    """The settings of `rlhf-hw perplexity`."""
    return parse_tool(
        "perplexity",
        PerplexityArguments,
        argv,
        check_perplexity,
        description="Perplexity of a language model on the answers of a data set.",
        example="rlhf-hw perplexity --model_name_or_path runs/sft --dataset_name heldout.jsonl",
    )


def check_held_out(settings: HeldOutArguments) -> None:
    """Contradictions among the flags."""
    at_least(1, settings, "max_samples", "max_length", "batch_size")
    if settings.by is not None and not settings.dataset_name:
        raise UserError("--by: names a column of a data set; give --dataset_name too")
    if not 0 <= settings.max_malformed_fraction <= 1:
        raise UserError(f"--max_malformed_fraction: got {settings.max_malformed_fraction}, expected 0 to 1")


def check_perplexity(settings: PerplexityArguments) -> None:
    """The same, and data are needed."""
    check_held_out(settings)
    if not settings.dataset_name:
        raise UserError("--dataset_name: required, but not given")
