"""The flags of the evaluation tools (`run_inference.py`, `run_eval.py`, `prompt_eval.py`, `rw_eval.py`, perplexity)."""

# ruff: noqa: RUF009 - HfArg returns a dataclasses.field
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.checks import at_least
from rlhf_hw.arguments.model import Dtype, HubAccess
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.errors import UserError

T = TypeVar("T", bound="AskingArguments")


@dataclass(kw_only=True)
class AskingArguments(HubAccess):
    """Where a model is asked, and how it is loaded."""

    device: Literal["auto", "cpu", "cuda", "hpu", "habana"] = HfArg(
        default="auto", help="Where to run. auto: an accelerator if there is one. habana means hpu."
    )
    torch_dtype: Dtype = HfArg(
        default="auto",
        aliases=["--dtype"],
        help="Precision of the weights. auto: what the hardware does best.",
    )
    cache_dir: str | None = HfArg(default=None, help="Directory for downloaded models.")


@dataclass(frozen=True)
class Tool(Generic[T]):
    """The settings of one evaluation tool. `given`: the names of those that the user gave."""

    settings: T
    given: frozenset[str]
    dry_run: bool


@dataclass(kw_only=True)
class InferArguments(AskingArguments):
    """Which model answers what, and where the answers go."""

    _argument_group_name = "Inference"

    model_name_or_path: str = HfArg(
        help="The model: a hub name or directory, of a whole model or of a PEFT adapter; with --lora also a file of LoRA "
        "weights (pytorch_model.bin). Required."
    )
    input_path: str = HfArg(
        help="Instructions: a json, jsonl, csv or parquet file with instruction (and input), or prompt. Its output, "
        "where it has one, is kept as the reference answer. Required."
    )
    output_path: str = HfArg(help="The JSON file for the answers. Required.")
    base_model_path: str | None = HfArg(
        default=None,
        help="The base model of LoRA weights, and where the tokenizer comes from. Not said: what the adapter names.",
    )
    lora: bool = HfArg(
        default=False, help="--model_name_or_path is LoRA weights: a PEFT directory or a .bin file."
    )
    lora_r: int | None = HfArg(
        default=None, help="Rank of the LoRA weights in a .bin file. Not said: read off the file."
    )
    lora_alpha: float = HfArg(
        default=64, help="Alpha of the LoRA weights in a .bin file; an adapter names its own."
    )
    load_in_8bit: bool = HfArg(default=False, help="Hold the weights in 8 bits (bitsandbytes; CUDA and CPU).")
    bsz: int = HfArg(default=8, aliases=["--batch_size"], help="Instructions answered at a time.")
    model_max_length: int = HfArg(
        default=512,
        help="Longest prompt in tokens, whose end is kept; and the longest answer, where that is not said.",
    )
    max_new_tokens: int | None = HfArg(
        default=None,
        help="Longest answer in tokens. Not said: --model_max_length, or what the model's context leaves.",
    )
    temperature: float = HfArg(default=0.0, help="0 is greedy, as the original's decoding was.")
    top_p: float = HfArg(
        default=1.0, help="Sample from the likeliest tokens that hold this much probability."
    )
    top_k: int = HfArg(default=0, help="Sample from the k likeliest tokens; 0: from all.")
    no_repeat_ngram_size: int = HfArg(
        default=0, help="No run of so many tokens twice in a text; 0: as it comes."
    )
    chat: bool = HfArg(
        default=False,
        help="Put instructions as chat messages (the model's template) instead of Alpaca's text.",
    )
    generator: str | None = HfArg(
        default=None, help="Name of the model in the output. Not said: the path's last part."
    )
    max_samples: int | None = HfArg(default=None, help="Answer only so many, the first.")
    seed: int = HfArg(default=0, help="Of sampling.")
    overwrite: bool = HfArg(
        default=False, help="Start afresh. Else a killed run goes on, and a whole output is refused."
    )


def parse_tool(
    command: str,
    settings: type[T],
    argv: Sequence[str] | None,
    check: Callable[[T], None],
    *,
    description: str,
    example: str,
) -> Tool[T]:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    parser = StageParser(command, [settings], description=description, example=example)
    parsed = parser.parse(argv)
    tool = Tool(parsed[settings], parsed.given, parsed.dry_run)
    return parser.checked(tool, lambda tool: check(tool.settings))


def parse_infer(argv: Sequence[str] | None = None) -> Tool[InferArguments]:
    """The settings of `rlhf-hw infer`."""
    return parse_tool(
        "infer",
        InferArguments,
        argv,
        check_infer,
        description="Answer a file of instructions with a model. A killed run, started again, goes on where it was.",
        example="rlhf-hw infer --model_name_or_path runs/aligned --input_path eval.json --output_path answers.json",
    )


def check_infer(infer: InferArguments) -> None:
    """Contradictions among the flags of infer."""
    at_least(1, infer, "bsz", "model_max_length", "max_new_tokens", "max_samples", "lora_r")
    check_sampling(infer)
    if infer.lora_alpha <= 0:
        raise UserError(f"--lora_alpha: got {infer.lora_alpha}, expected a number above 0")
    if infer.model_name_or_path.endswith(".bin"):
        if not infer.lora:
            raise UserError(
                f"--model_name_or_path: {infer.model_name_or_path} is a file; give --lora if it is LoRA weights"
            )
        if infer.base_model_path is None:
            raise UserError(
                "--base_model_path: required, but not given: a .bin file does not name its base model"
            )
        if infer.load_in_8bit:
            raise UserError(
                "--load_in_8bit: a .bin file of LoRA weights is merged into its base, which 8-bit weights cannot take; leave "
                "it out, or name a PEFT directory"
            )


@dataclass(kw_only=True)
class JudgeArguments(AskingArguments):
    """Which answers are compared, and who judges them."""

    _argument_group_name = "Judging"

    input_path: str = HfArg(
        help="Answers, as rlhf-hw infer writes them: rows with instruction (and input), or prompt, and the answer to be "
        "judged. Required."
    )
    output_path: str = HfArg(
        help="The JSON file for the judged rows: preference 2 where the answer is better than the reference, 1 where the "
        "reference is, 1.5 for a tie. A summary goes beside it. Required."
    )
    reference_path: str | None = HfArg(
        default=None,
        help="A second file, whose rows answer the same instructions in the same order: its --answer_column holds the "
        "reference answers. Not said: they are the --reference_column of the first file.",
    )
    reference_column: str = HfArg(default="output_1", help="Column of the reference answers.")
    answer_column: str = HfArg(
        default="output_2", help="Column of the answers to be judged; output where a row has no such column."
    )
    reward_model: str | None = HfArg(
        default=None,
        aliases=["--reward_model_name", "--reward_model_name_or_path"],
        help="Judge by this reward model (directory or hub name) instead of an endpoint.",
    )
    judge_model: str = HfArg(default="gpt-4.1-mini", help="The chat model to ask at the endpoint.")
    judge_url: str | None = HfArg(
        default=None,
        help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1. Not said: the OPENAI_BASE_URL variable, "
        "else OpenAI's.",
    )
    api_key_variable: str = HfArg(
        default="OPENAI_API_KEY",
        help="The environment variable that holds the endpoint's key. The key itself is never a flag and is written "
        "nowhere.",
    )
    concurrency: int = HfArg(default=4, help="Pairs asked about at the same time.")
    timeout: float = HfArg(default=60.0, help="Seconds to wait for the endpoint's answer.")
    retries: int = HfArg(
        default=6,
        help="How often a request that failed in passing (429, 5xx, time-out) is repeated, later each time.",
    )
    batch_size: int = HfArg(
        default=16, aliases=["--bsz"], help="Answers that the reward model scores at a time."
    )
    chat: bool = HfArg(
        default=False,
        help="The reward model reads instructions as chat messages (its template), not as Alpaca's text.",
    )
    max_samples: int | None = HfArg(default=None, help="Judge only so many rows, the first.")
    overwrite: bool = HfArg(
        default=False, help="Start afresh. Else a killed run goes on, and a whole output is refused."
    )


def parse_judge(argv: Sequence[str] | None = None) -> Tool[JudgeArguments]:
    """The settings of `rlhf-hw judge`."""
    return parse_tool(
        "judge",
        JudgeArguments,
        argv,
        check_judge,
        description="Win rate of answers against reference answers, by a chat model that is asked in both orders, or by "
        "a reward model. A killed run, started again, goes on where it was.",
        example="rlhf-hw judge --input_path answers.json --output_path judged.json --reward_model runs/reward",
    )


def check_judge(judge: JudgeArguments) -> None:
    """Contradictions among the flags of judge."""
    at_least(1, judge, "concurrency", "batch_size", "max_samples")
    at_least(0, judge, "retries")
    if judge.timeout <= 0:
        raise UserError(f"--timeout: got {judge.timeout}, expected a number above 0")
    if not judge.api_key_variable.isidentifier():  # not repeated here: it may be the key itself
        raise UserError(
            "--api_key_variable: expected the name of a variable, such as OPENAI_API_KEY, and never a key"
        )
    if judge.reward_model is not None and judge.judge_url is not None:
        raise UserError("--reward_model and --judge_url: both were given; one judge is enough, give one")


@dataclass(kw_only=True)
class CompareArguments(AskingArguments):
    """Which two models answer which prompts, and how the answers are written."""

    _argument_group_name = "Comparison"

    model_name_or_path_baseline: str = HfArg(
        help="The model to compare with: a hub name or directory. Required."
    )
    model_name_or_path_finetune: str = HfArg(
        aliases=["--model_name_or_path_finetuned"], help="The fine-tuned model or adapter. Required."
    )
    language: Literal["English", "Chinese", "Japanese"] = HfArg(
        default="English", help="Language of the prompts that come with this command."
    )
    prompts_path: str | None = HfArg(
        default=None, help="Other prompts: a file with prompt, or instruction (and input), in its rows."
    )
    chat: bool = HfArg(default=False, help="Put the rows of --prompts_path as chat messages.")
    max_samples: int | None = HfArg(default=None, help="Only so many prompts, the first.")
    decoding: Literal["auto", "greedy", "beam", "sampling", "contrastive"] = HfArg(
        default="auto",
        help="How answers are written. auto: beam where --num_beams is above 1 (diverse beam with several groups), "
        "contrastive where --penalty_alpha is given, sampling where --top_k, --top_p or --temperature is, else greedy.",
    )
    num_beams: int = HfArg(default=1, help="Beams of beam search.")
    num_beam_groups: int = HfArg(
        default=1, help="Groups of beams that avoid each other's tokens (diverse beam search)."
    )
    diversity_penalty: float = HfArg(
        default=1.0, help="What a group of beams is charged for a token of an earlier group, in nats."
    )
    top_k: int = HfArg(
        default=4,
        help="Contrastive search: candidates at each step. Sampling: the likeliest tokens, 0 for all.",
    )
    penalty_alpha: float = HfArg(
        default=0.6, help="Contrastive search: weight of being unlike what was said before, from 0 to 1."
    )
    top_p: float = HfArg(default=1.0, help="Sampling: the likeliest tokens that hold this much probability.")
    temperature: float = HfArg(default=1.0, help="Sampling: the temperature.")
    no_repeat_ngram_size: int = HfArg(
        default=0,
        help="No run of so many tokens twice in a text; 0: as it comes. Not with diverse or contrastive search.",
    )
    num_return_sequences: int = HfArg(default=1, help="Answers to each prompt, of beams or sampling.")
    max_new_tokens: int = HfArg(default=100, help="Longest answer in tokens.")
    seed: int = HfArg(default=0, help="Of sampling; both models draw with the same random numbers.")
    output_path: str | None = HfArg(
        default=None, help="A JSON file for the answers. Not said: they are only shown."
    )
    overwrite: bool = HfArg(default=False, help="Replace --output_path where it is there already.")


def parse_compare(argv: Sequence[str] | None = None) -> Tool[CompareArguments]:
    """The settings of `rlhf-hw compare`."""
    return parse_tool(
        "compare",
        CompareArguments,
        argv,
        check_compare,
        description="The same prompts answered by a baseline and a fine-tuned model, side by side.",
        example="rlhf-hw compare --model_name_or_path_baseline base --model_name_or_path_finetune runs/sft",
    )


def check_compare(compare: CompareArguments) -> None:
    """Contradictions among the flags of compare."""
    at_least(
        1, compare, "num_beams", "num_beam_groups", "num_return_sequences", "max_new_tokens", "max_samples"
    )
    check_sampling(compare)
    beams, groups = compare.num_beams, compare.num_beam_groups
    if beams % groups:
        raise UserError(
            f"--num_beam_groups: {groups} groups cannot share {beams} beams evenly; change one of them"
        )
    if not 0 <= compare.penalty_alpha <= 1:
        raise UserError(f"--penalty_alpha: got {compare.penalty_alpha}, expected a number from 0 to 1")
    if compare.decoding in ("sampling", "auto") and compare.temperature == 0:
        raise UserError("--temperature: 0 is no sampling; leave it out for greedy answers")
    if compare.decoding == "beam" and beams == 1:
        raise UserError("--decoding beam: --num_beams is 1; give more")


def check_sampling(group: Any) -> None:
    """Numbers of sampling that mean something."""
    at_least(0, group, "temperature", "top_k", "no_repeat_ngram_size")
    if not 0 < group.top_p <= 1:
        raise UserError(f"--top_p: got {group.top_p}, expected a number above 0 and at most 1")
