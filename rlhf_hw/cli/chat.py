"""`rlhf-hw chat` and `chat.py`: talk to a model on the terminal."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from backends import resolve
from rlhf_hw.cli.entry import command
from rlhf_hw.data.example import Message
from rlhf_hw.data.template import prompt_text
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
    """Load the model and talk until the user leaves."""
    arguments = build_parser().parse_args(argv)
    check_model_path(arguments.path, "--path")
    if arguments.tokenizer_name is not None:
        check_tokenizer_path(arguments.tokenizer_name, "--tokenizer_name")
    backend = resolve(arguments.device)
    precision = backend.precision(None, None)
    options = LoadOptions(
        flag="--path",
        dtype=precision.frozen_dtype,
        attention=backend.attention_implementation(precision).value,
    )
    tokenizer = load_tokenizer(
        arguments.tokenizer_name or arguments.path,
        replace(options, flag="--tokenizer_name") if arguments.tokenizer_name else options,
    )
    model = load_policy(arguments.path, options).eval().to(backend.device)
    torch.manual_seed(arguments.seed)
    print(f"{arguments.path} on {backend.name}. {HELP}")
    turns: list[Message] = []
    while (line := _read()) is not None:
        if line in ("/quit", "quit", "exit"):
            break
        if line in ("/clear", "clear"):
            turns = []
            print("(forgotten)")
        elif line in ("/help", "help"):
            print(HELP)
        elif line:
            turns.append(Message("user", line))
            turns.append(Message("assistant", _answer(model, tokenizer, turns, arguments)))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags of chat."""
    parser = argparse.ArgumentParser(
        prog="rlhf-hw chat", description="Talk to a model on the terminal. " + HELP
    )
    parser.add_argument(
        "--path", required=True, help="the model: a directory (whole, or an adapter) or a hub name"
    )
    parser.add_argument("--tokenizer_name", help="take the tokenizer from here instead of from the model")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.95, help="0 is greedy (default: 0.95)")
    parser.add_argument("--top_p", type=float, default=0.7, help="nucleus of this probability (default: 0.7)")
    parser.add_argument("--raw", action="store_true", help="send each line as it is: no template, no memory")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    return parser


def _read() -> str | None:
    try:
        return input("you> ").strip()
    except EOFError:
        print()
        return None


def _answer(model: Any, tokenizer: Any, turns: list[Message], arguments: argparse.Namespace) -> str:
    prompt = turns[-1].content if arguments.raw else prompt_text(tuple(turns), tokenizer)
    templated = not arguments.raw and tokenizer.chat_template is not None
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not templated).to(model.device)
    inputs.pop("token_type_ids", None)
    print("model> ", end="", flush=True)
    pieces = []
    for piece in _stream(model, tokenizer, inputs, arguments):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces).strip()


def _stream(model: Any, tokenizer: Any, inputs: Any, arguments: argparse.Namespace) -> Iterator[str]:
    """The answer as it is written."""
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling: dict[str, Any] = {"do_sample": False}
    if arguments.temperature > 0:
        sampling = {
            "do_sample": True,
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "top_k": 0,
        }
    keywords = {
        **inputs,
        **sampling,
        "max_new_tokens": arguments.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "streamer": streamer,
    }
    failures: list[BaseException] = []

    def write() -> None:
        try:
            model.generate(**keywords)
        except BaseException as error:
            failures.append(error)
            streamer.end()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield from streamer
    writer.join()
    if failures:
        raise failures[0]


if __name__ == "__main__":
    sys.exit(main())
