"""`rlhf-hw data preview`: what a data set becomes, as text and as tokens with their loss mask, before training.

`rlhf-hw data formats` lists the formats that are known by their columns or their names.

With colour, targets are green, masked tokens are dim, and special tokens are reversed. Without (a pipe, a
file, NO_COLOR), targets stand between ⟦ and ⟧ and special tokens show by their own spelling.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import datasets
from datasets import Dataset
from rich.console import Console
from rich.text import Text

from rlhf_hw.arguments.data import parse_data_split
from rlhf_hw.data.example import CANONICAL_FEATURES, PURPOSES, Example, Purpose, from_row
from rlhf_hw.data.formats import FORMATS
from rlhf_hw.data.sources import DataSource, Splits, load_splits
from rlhf_hw.data.tokenize import Tokenized, for_prompts, for_reward, for_sft
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET_STYLE, MASKED_STYLE, SPECIAL_STYLE, HEADING_STYLE = "green", "dim", "bold reverse", "bold"
DEFAULT_MAX_LENGTH = 512


def main(argv: Sequence[str] | None = None) -> int:
    """Print the preview; 0, or 2 with one line on standard error if the input needs mending."""
    arguments = _parser().parse_args(argv)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        if arguments.command == "formats":
            for known in FORMATS:
                console.print(Text.assemble((f"{known.name}: ", HEADING_STYLE), known.example_columns))
        else:
            _preview(arguments, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlhf-hw data", description="Look at data before training on them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("formats", help="list the known formats and their columns")
    preview = commands.add_parser(
        "preview",
        help="show rows as text and as tokens with the loss mask",
        description="Read a data set as training would, and show its first rows, what was wrong and how long it is.",
    )
    _add_data_flags(preview.add_argument_group("data"))
    tokens = preview.add_argument_group("tokens")
    tokens.add_argument(
        "--tokenizer", metavar="PATH", help="a model or tokenizer: show tokens and lengths too"
    )
    tokens.add_argument(
        "--max_length",
        type=int,
        default=DEFAULT_MAX_LENGTH,
        help=f"longest row in tokens; of prompts for ppo (default: {DEFAULT_MAX_LENGTH})",
    )
    tokens.add_argument(
        "--long_prompts",
        choices=("drop", "truncate_left"),
        default="drop",
        help="ppo: leave out longer prompts, or keep their last tokens (default: drop)",
    )
    tokens.add_argument(
        "--long_examples",
        choices=("truncate_right", "truncate_left"),
        default="truncate_right",
        help="sft: longer examples keep their first tokens, or their last (default: truncate_right)",
    )
    tokens.add_argument("--train_on_inputs", action="store_true", help="sft: prompts are targets too")
    preview.add_argument("--rows", type=int, default=3, help="how many rows to show (default: 3)")
    return parser


def _add_data_flags(data: "argparse._ArgumentGroup") -> None:
    """The flags of training that decide which rows are read and what text they become."""
    data.add_argument(
        "name", metavar="NAME_OR_FILE", nargs="+", help="hub names, directories or files; several are mixed"
    )
    data.add_argument("--dataset_config_name", help="the configuration of a set that has several")
    data.add_argument("--train_splits", nargs="+", metavar="SPLIT", help="splits to train on")
    data.add_argument("--eval_splits", nargs="+", metavar="SPLIT", help="splits to evaluate on")
    data.add_argument("--data_split", metavar="SFT,RM,PPO", help="shares of the stages, as 2,4,4")
    data.add_argument(
        "--sft_only_data_path", nargs="+", metavar="NAME_OR_FILE", help="sets that sft gets whole"
    )
    data.add_argument("--dataset_seed", type=int, default=42, help="of splitting and mixing (default: 42)")
    data.add_argument(
        "--data_format", help="a format's name or a YAML file; default: detected by the columns"
    )
    data.add_argument("--prompt_dict_path", metavar="FILE.json", help="Alpaca's prompts in other words")
    data.add_argument(
        "--purpose", choices=PURPOSES, default="sft", help="what the rows are for (default: sft)"
    )
    data.add_argument(
        "--task", default="completion", help="chat: text prompts become chat messages (default: completion)"
    )
    data.add_argument(
        "--max_malformed_fraction",
        type=float,
        default=0.01,
        help="refuse data with more bad rows (default: 0.01)",
    )
    data.add_argument("--cache_dir", help="where converted data are cached (default: that of datasets)")
    data.add_argument("--token", help="access token for the hub")


def _preview(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.rows < 0 or arguments.max_length < 1:
        raise UserError("--rows, --max_length: give numbers of rows and tokens; a length is at least 1")
    source = DataSource(
        dataset_name=arguments.name,
        dataset_config_name=arguments.dataset_config_name,
        train_splits=arguments.train_splits,
        eval_splits=arguments.eval_splits,
        data_split=None if arguments.data_split is None else parse_data_split(arguments.data_split),
        sft_only_data_path=arguments.sft_only_data_path,
        dataset_seed=arguments.dataset_seed,
        prompt_dict_path=arguments.prompt_dict_path,
        data_format=arguments.data_format,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        task=arguments.task,
        max_malformed_fraction=arguments.max_malformed_fraction,
    )
    splits = load_splits(source, arguments.purpose)
    tokenizer = None if arguments.tokenizer is None else _load_tokenizer(arguments.tokenizer)
    datasets.disable_progress_bars()  # what is left to do is short, and bars would stand between the rows
    for number in range(min(arguments.rows, len(splits.train))):
        row = Dataset.from_dict(splits.train[number : number + 1], features=CANONICAL_FEATURES)
        console.print(Text(f"── row {number + 1} of {len(splits.train)} ", style=HEADING_STYLE))
        _print_text(from_row(row[0]), console)
        if tokenizer is not None:
            _print_tokens(row, tokenizer, arguments, console)
    _print_reports(splits, tokenizer, arguments, console)


def _load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # seconds to import, and only needed here

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--tokenizer: {name}: {' '.join(str(error).split())[:200]}; check the path"
        ) from error


def _tokenize(
    rows: Dataset, tokenizer: "PreTrainedTokenizerBase", purpose: Purpose, arguments: argparse.Namespace
) -> Tokenized:
    if purpose == "sft":
        side: Literal["right", "left"] = "left" if arguments.long_examples == "truncate_left" else "right"
        options = {"max_length": arguments.max_length, "train_on_inputs": arguments.train_on_inputs}
        return for_sft(rows, tokenizer, truncate=side, **options)
    if purpose == "reward":
        return for_reward(rows, tokenizer, max_length=arguments.max_length)
    cut: Literal["drop", "left"] = "left" if arguments.long_prompts == "truncate_left" else "drop"
    return for_prompts(rows, tokenizer, max_prompt_length=arguments.max_length, truncate=cut)


def _print_text(example: Example, console: Console) -> None:
    if isinstance(example.prompt, str):
        _print_field("prompt", example.prompt, console)
    else:
        for message in example.prompt:
            _print_field(message.role, message.content, console)
    for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        if answer is not None:
            _print_field(name, answer, console)


def _print_field(name: str, text: str, console: Console) -> None:
    console.print(Text.assemble((f"[{name}] ", HEADING_STYLE), text))


def _print_tokens(
    row: Dataset, tokenizer: "PreTrainedTokenizerBase", arguments: argparse.Namespace, console: Console
) -> None:
    """The ids that training would see for one row, decoded, with what carries loss marked."""
    try:
        tokens = _tokenize(row, tokenizer, arguments.purpose, arguments).dataset[0]
    except UserError as error:  # the only row of this data set was dropped
        console.print(Text(f"[tokens] {error}", style=HEADING_STYLE))
        return
    for column, ids in ((name, tokens[name]) for name in tokens if name.endswith("input_ids")):
        label = column.removesuffix("input_ids").rstrip("_") or "tokens"
        if arguments.purpose == "sft":
            mask, meaning = tokens["loss_mask"], f", {sum(tokens['loss_mask'])} with loss"
        elif arguments.purpose == "reward":
            shared = _shared_prefix_length(tokens["chosen_input_ids"], tokens["rejected_input_ids"])
            mask = [0] * shared + [1] * (len(ids) - shared)
            meaning = f", {len(ids) - shared} after the first difference"
        else:
            mask, meaning = [0] * len(ids), ""
        tokens_text = marked_tokens(ids, mask, tokenizer, with_brackets=console.color_system is None)
        console.print(Text.assemble((f"[{label}: {len(ids)} tokens{meaning}] ", HEADING_STYLE), tokens_text))


def _shared_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    differences = (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differences, min(len(one), len(other)))


def marked_tokens(
    ids: Sequence[int], mask: Sequence[int], tokenizer: "PreTrainedTokenizerBase", *, with_brackets: bool
) -> Text:
    """The decoded ids; where the mask is 1 in green (and between ⟦ and ⟧), else dim; special tokens reversed."""
    special = set(tokenizer.all_special_ids)
    text = Text()
    for is_target, run in _runs(ids, mask):
        style = TARGET_STYLE if is_target else MASKED_STYLE
        text.append("⟦" if is_target and with_brackets else "", style)
        for is_special, part in groupby(run, key=special.__contains__):
            text.append(tokenizer.decode(list(part)), f"{style} {SPECIAL_STYLE}" if is_special else style)
        text.append("⟧" if is_target and with_brackets else "", style)
    return text


def _runs(ids: Sequence[int], mask: Sequence[int]) -> Iterator[tuple[bool, list[int]]]:
    """(is a target, ids) of each longest run of one kind. Runs, not tokens: one character may be many tokens."""
    for is_target, pairs in groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1])):
        yield is_target, [token for token, _ in pairs]


def _print_reports(
    splits: Splits,
    tokenizer: "PreTrainedTokenizerBase | None",
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    console.print(Text("── data ", style=HEADING_STYLE))
    for line in splits.report.lines():
        console.print(Text(line))
    if tokenizer is None:
        return
    console.print(Text("── tokens ", style=HEADING_STYLE))
    for name, part in (("train", splits.train), ("validation", splits.validation)):
        if part is not None:
            for line in _tokenize(part, tokenizer, arguments.purpose, arguments).report.lines():
                console.print(Text(f"{name}: {line}"))
