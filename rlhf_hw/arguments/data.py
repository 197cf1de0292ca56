"""The flags that say which data, how much of it, and how long."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from rlhf_hw.errors import UserError

Task = Literal["completion", "chat", "summarization", "code-generation"]


@dataclass(kw_only=True)
class DataArguments:
    """Where the examples come from: the same for every stage."""

    _argument_group_name = "Data"

    dataset_name: list[str] | None = HfArg(
        default=None,
        aliases=["--data_path"],
        help="One data set or several, mixed: hub names, local directories or files (json, jsonl, csv, parquet). In training "
        "--data_path is DeepSpeed-Chat's name, which brings its defaults along (see --dialect).",
    )
    dataset_config_name: str | None = HfArg(
        default=None,
        help="Configuration of the hub data set, where it has several; of a local directory, the directory or data "
        "file of that name in it. A file has none.",
    )
    train_splits: list[str] | None = HfArg(
        default=None, help="The set's splits to train on, joined. Not said: train, or the only one."
    )
    eval_splits: list[str] | None = HfArg(
        default=None,
        help="The set's splits to evaluate on, joined; --validation_file beats them. Not said: its validation or test split.",
    )
    data_split: str | None = HfArg(
        default=None,
        help="Three numbers, as 2,4,4: the shares of every set that SFT, reward model and PPO get, the evaluation data "
        "alike. No row is in two of them. Of a set without evaluation data a tenth of the share is kept for it.",
    )
    sft_only_data_path: list[str] | None = HfArg(
        default=None,
        help="Sets that supervised fine-tuning gets whole, beside --dataset_name; the other stages none of them.",
    )
    train_file: str | None = HfArg(
        default=None,
        help="Training data in a file (json, jsonl, csv, parquet, txt) instead of --dataset_name.",
    )
    validation_file: str | None = HfArg(default=None, help="Evaluation data in a file.")
    data_format: str | None = HfArg(
        default=None,
        help="The name of the format the rows are in, or a YAML file that says which columns are prompt, chosen and "
        "rejected; of all sets, where there are several. Not said: told by the columns, or by the set's name where "
        "columns cannot tell.",
    )
    prompt_dict_path: str | None = HfArg(
        default=None,
        help="A JSON file with the texts prompt_inputs and prompt_noinputs, in place of Alpaca's own, around "
        "{instruction} and {input} of Alpaca and AlpacaFarm rows.",
    )
    validation_split_percentage: int = HfArg(
        default=0,
        help="Percent of the training data kept for evaluation, where no evaluation data is given; of each set, where "
        "there are several.",
    )
    eval_dataset_size: int | None = HfArg(
        default=None, help="The same as a number of examples; beats the percentage."
    )
    max_train_samples: int | None = HfArg(default=None, help="Use at most so many training examples.")
    max_eval_samples: int | None = HfArg(default=None, help="Use at most so many evaluation examples.")
    max_malformed_fraction: float = HfArg(
        default=0.01,
        help="Stop if more than this fraction of the rows cannot be read; fewer are left out, counted.",
    )
    dataset_seed: int = HfArg(default=42, help="Seed of shuffling and splitting the data.")
    preprocessing_num_workers: int | None = HfArg(
        default=None, help="Processes that tokenize. Not said: one."
    )
    dataset_cache_directory: str | None = HfArg(
        default=None, help="Directory for tokenized and downloaded data."
    )
    overwrite_cache: bool = HfArg(
        default=False, help="Tokenize again even where a cached result exists; nothing is cached then."
    )
    keep_in_memory: bool = HfArg(
        default=False, help="Keep tokenized data in memory instead of mapping files."
    )
    streaming: bool = HfArg(
        default=False,
        help="Read a hub data set as it comes, up to --max_train_samples (which must be given), instead of downloading "
        "all of it first. Local data are read in any case.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.dataset_name, str):  # a stage's default, or a caller's: one name is a list of one
            self.dataset_name = [self.dataset_name]


def parse_data_split(text: str) -> tuple[float, float, float]:
    """The three shares of `--data_split`.

    Raises:
        UserError: they are not three numbers of at least 0, one of them above 0.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not all(0 <= share < math.inf for share in shares) or not any(shares):
        raise UserError(
            f"--data_split: got {text!r}, expected three numbers such as 2,4,4 (SFT, reward model, PPO)"
        )
    return shares[0], shares[1], shares[2]


@dataclass(kw_only=True)
class SFTDataArguments(DataArguments):
    """What supervised fine-tuning asks in addition."""

    max_seq_length: int = HfArg(
        default=512,
        help="Longest example in tokens, prompt and answer; what is longer is cut (--long_examples).",
    )
    long_examples: Literal["truncate_right", "truncate_left"] = HfArg(
        default="truncate_right",
        help="Examples longer than --max_seq_length keep their first tokens (and lose the end of the answer), or their last "
        "(and lose the beginning of the prompt). Both are counted.",
    )
    train_on_inputs: bool = HfArg(default=False, help="Learn the prompt too, not the answer alone.")
    task: Task = HfArg(
        default="completion",
        help="How rows become text: completion (prompt and answer as they are), chat (the model's chat template), "
        "summarization (each article and summary cut to a length of its own), code-generation (as completion: the "
        "original differed in its evaluation alone).",
    )
    dataset_concatenation: bool = HfArg(
        default=False,
        help="Join the training examples end to end and cut them into blocks of --max_seq_length tokens, so that "
        "nothing is padding; what is left over at the end is dropped.",
    )
    packing: bool = HfArg(
        default=False,
        help="Put whole examples side by side in blocks of --max_seq_length tokens, none cut: the same loss as "
        "unpacked, with less padding.",
    )
    pad_to_max_length: bool = HfArg(
        default=False, help="Pad every example to --max_seq_length; else a batch to its longest example."
    )
    special_tokens: list[str] | None = HfArg(
        default=None,
        help="Tokens to add to the tokenizer's vocabulary as special ones. Their embeddings are trained with "
        "--full_finetune only.",
    )
    max_source_length: int = HfArg(
        default=384,
        help="summarization: longest text to be summarized, in tokens; a longer one is cut, the request around it stays.",
    )
    max_target_length: int = HfArg(
        default=128, help="summarization: longest summary, in tokens; a longer one is cut."
    )
    num_beams: int = HfArg(
        default=4,
        help="summarization: the original's beam width when generating for evaluation. No effect here: evaluation is "
        "by perplexity.",
    )


@dataclass(kw_only=True)
class RewardDataArguments(DataArguments):
    """What reward modelling asks in addition."""

    max_length: int = HfArg(
        default=512,
        help="Longest prompt with answer, in tokens; a pair with a longer side is left out and counted.",
    )


@dataclass(kw_only=True)
class PPODataArguments(DataArguments):
    """What PPO asks in addition."""

    max_prompt_length: int = HfArg(
        default=512, help="Longest prompt in tokens; for longer ones see --long_prompts."
    )
    long_prompts: Literal["drop", "truncate_left"] = HfArg(
        default="drop",
        help="Prompts longer than --max_prompt_length: leave them out, or keep their last tokens. Both are counted.",
    )
    eval_prompts: int = HfArg(
        default=64, help="Held-out prompts that are answered and scored at each evaluation."
    )
