"""`rlhf-hw chat` and `chat.py`: talk to a model, or to two beside each other, on the terminal or (`--web`) in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from backends import Backend, resolve
from rlhf_hw.arguments.one_line import OneLineParser
from rlhf_hw.cli.entry import command
from rlhf_hw.data.example import Message
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.evaluation.conversation import Manner, fitting, said
from rlhf_hw.evaluation.page import check_gradio, serve
from rlhf_hw.models.load import (
    LoadOptions,
    check_model_path,
    check_tokenizer_path,
    load_policy,
    load_tokenizer,
)

HELP = "Type a message and Enter. /clear forgets the conversation, /quit (or Ctrl-D) leaves."


@command("chat")
def main(argv: Sequence[str] | None = None) -> int:
    """Load the models and talk until the user leaves."""
    arguments = build_parser().parse_args(argv)
    check(arguments)
    backend = resolve(arguments.device)
    models = {}
    for label, name, flag in named(arguments):
        models[label] = load(name, flag, backend, arguments.tokenizer_name)
    manner = Manner(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        num_beams=arguments.num_beams,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        raw=arguments.raw,
    )
    torch.manual_seed(arguments.seed)
    if arguments.web:
        if arguments.host not in ("127.0.0.1", "localhost"):
            print(
                f"the page is open to everyone who reaches {arguments.host}:{arguments.port}; it asks for no password"
            )
        serve(models, manner, arguments.host, arguments.port)
        return 0
    print(f"{' and '.join(asked.name for asked in models.values())} on {backend.name}. {HELP}")
    talk(models, manner)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags of chat."""
    parser = OneLineParser(
        prog="rlhf-hw chat",
        description="Talk to a model on the terminal, or to two in a browser. " + HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--path", required=True, help="the model: a directory (whole, or an adapter) or a hub name")
    add("--compare", metavar="PATH", help="a second model, which answers the same messages beside the first")
    add("--tokenizer_name", help="take the tokenizer from here instead of from the model")
    add("--device", default="auto", help="auto, cpu, cuda or hpu (default: auto)")
    add("--max_new_tokens", type=int, default=128, help="longest answer (default: 128)")
    add("--temperature", type=float, default=0.95, help="0 is greedy (default: 0.95)")
    add("--top_p", type=float, default=0.7, help="nucleus of this probability (default: 0.7)")
    add("--top_k", type=int, default=0, help="sample from the k likeliest tokens; 0: from all (default: 0)")
    add(
        "--num_beams",
        type=int,
        default=1,
        help="beams; above 1 an answer is shown when it is whole (default: 1)",
    )
    add("--no_repeat_ngram_size", type=int, default=0, help="no run of so many tokens twice: 5 cures small models that repeat "
        "themselves; 0: off (default: 0)")  # fmt: skip
    add("--raw", action="store_true", help="send each line as it is: no template, no memory")
    add("--seed", type=int, default=0, help="of sampling (default: 0)")
    add("--web", action="store_true", help="a page in the browser (needs requirements-web.txt)")
    add(
        "--host",
        default="127.0.0.1",
        help="--web: the address that is served (default: 127.0.0.1, this machine alone)",
    )
    add("--port", type=int, default=7860, help="--web: the port (default: 7860)")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """What can be told before anything loads.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    least = {
        "max_new_tokens": 1,
        "num_beams": 1,
        "top_k": 0,
        "temperature": 0,
        "no_repeat_ngram_size": 0,
        "port": 0,
    }
    for name, lowest in least.items():
        if getattr(arguments, name) < lowest:
            raise UserError(f"--{name}: got {getattr(arguments, name)}, expected at least {lowest}")
    if not 0 < arguments.top_p <= 1:
        raise UserError(f"--top_p: got {arguments.top_p}, expected a number above 0 and at most 1")
    for _, name, flag in named(arguments):
        check_model_path(name, flag)
    if arguments.tokenizer_name is not None:
        check_tokenizer_path(arguments.tokenizer_name, "--tokenizer_name")
    if arguments.web:
        check_gradio()


def named(arguments: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(what it is called here, path, flag) of each model: "model" where there is one, else the ends of the paths that tell
    them apart."""
    if arguments.compare is None:
        return [("model", arguments.path, "--path")]
    paths = (arguments.path, arguments.compare)
    labels = [Path(path).name or path for path in paths]
    if labels[0] == labels[1]:
        labels = ["/".join(Path(path).parts[-2:]) for path in paths]
    if labels[0] == labels[1]:
        labels = ["first", "second"]
    return [(labels[0], paths[0], "--path"), (labels[1], paths[1], "--compare")]


def load(name: str, flag: str, backend: Backend, tokenizer_name: str | None) -> Asked:
    """A model with its tokenizer, ready to be asked."""
    precision = backend.precision(None, None)
    options = LoadOptions(
        flag=flag,
        dtype=precision.frozen_dtype,
        attention=backend.attention_implementation(precision).value,
    )
    tokenizer = load_tokenizer(
        tokenizer_name or name, replace(options, flag="--tokenizer_name") if tokenizer_name else options
    )
    return Asked(name, load_policy(name, options).eval().to(backend.device), tokenizer, backend)


def talk(models: dict[str, Asked], manner: Manner) -> None:
    """Read messages and answer them until the user leaves; each model remembers what it said itself."""
    turns: dict[str, list[Message]] = {label: [] for label in models}
    while (line := _read()) is not None:
        if line in ("/quit", "quit", "exit"):
            return
        if line in ("/clear", "clear"):
            turns = {label: [] for label in models}
            print("(forgotten)")
        elif line in ("/help", "help"):
            print(HELP)
        elif line:
            for label, asked in models.items():
                turns[label] = _answered(label, asked, [*turns[label], Message("user", line)], manner)


def _read() -> str | None:
    try:
        return input("you> ").strip()
    except EOFError:
        print()
        return None


def _answered(label: str, asked: Asked, turns: list[Message], manner: Manner) -> list[Message]:
    """Show the answer as it is written; the conversation with it."""
    try:
        kept = fitting(asked, turns, manner)
    except UserError as error:
        print(f"({error})")
        return turns[:-1]
    if len(kept) < len(turns) and not manner.raw:
        print("(the beginning of the conversation no longer fits, and is forgotten)")
    print(f"{label}> ", end="", flush=True)
    pieces = []
    for piece in said(asked, kept, manner):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return [*kept, Message("assistant", "".join(pieces).strip())]


if __name__ == "__main__":
    sys.exit(main())
