"""`rlhf-hw compare` and `prompt_eval.py`: a baseline and a fine-tuned model, side by side."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_hw.arguments.evaluation import CompareArguments, Tool, parse_compare
from rlhf_hw.cli.entry import command
from rlhf_hw.data.example import Example, Message
from rlhf_hw.evaluation.asked import Place
from rlhf_hw.evaluation.comparison import Decoding, Method, written_answers
from rlhf_hw.evaluation.instructions import example_of, read_instructions
from rlhf_hw.evaluation.journal import check_output
from rlhf_hw.evaluation.prompts import PROMPTS
from rlhf_hw.models.load import check_model_path
from rlhf_hw.run_files import as_json, write_atomically
from rlhf_hw.secrets import SecretVault, install_log_filter

#: method → the flags of decoding that act with it
ACTING: dict[Method, set[str]] = {
    "greedy": set(),
    "beam": {"num_beams"},
    "diverse beam": {"num_beams", "num_beam_groups", "diversity_penalty"},
    "sampling": {"top_k", "top_p", "temperature", "seed"},
    "contrastive": {"top_k", "penalty_alpha"},
}


@command("compare")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, let each model answer, show the answers beside each other, write them."""
    tool = parse_compare(argv)
    settings = tool.settings
    install_log_filter(SecretVault(settings.secret_values()))
    models = {
        "baseline": (settings.model_name_or_path_baseline, "--model_name_or_path_baseline"),
        "finetuned": (settings.model_name_or_path_finetune, "--model_name_or_path_finetune"),
    }
    for name, flag in models.values():
        check_model_path(name, flag)
    if settings.output_path is not None:
        check_output(settings.output_path, overwrite=settings.overwrite, flag="--output_path")
    examples = prompts_of(settings)
    decoding = decoding_of(tool)
    for name in sorted((set().union(*ACTING.values()) - ACTING[decoding.method]) & tool.given):
        print(f"--{name}: without effect, answers are written by {decoding.method} decoding")
    if tool.dry_run:
        print(f"dry run: would answer {len(examples)} prompts with each model, by {decoding.method}")
        return 0
    answers: dict[str, list[list[str]]] = {}
    for role, (name, flag) in models.items():
        gc.collect()  # one after the other: a second model may not fit beside the first
        place = Place.of(settings)
        asked = place.language_model(name, flag)
        print(f"{role}: {name} on {asked.backend.name}, {decoding.method}", flush=True)
        answers[role] = written_answers(asked, examples, decoding)
        del asked
    rows: list[dict[str, Any]] = [
        {"prompt": shown(example), **{role: texts[i] for role, texts in answers.items()}}
        for i, example in enumerate(examples)
    ]
    show(rows)
    if settings.output_path is not None:
        content = {
            "models": {role: name for role, (name, _) in models.items()},
            "decoding": decoding.as_dict(),
            "rows": rows,
        }
        write_atomically(Path(settings.output_path), as_json(content))
        print(f"wrote {settings.output_path}")
    return 0


def prompts_of(settings: CompareArguments) -> list[Example]:
    """The prompts of the file, or our own of the language, as each model's chats are written."""
    if settings.prompts_path is not None:
        rows = read_instructions(settings.prompts_path, "--prompts_path")[: settings.max_samples]
        return [example_of(row, chat=settings.chat) for row in rows]
    chosen = PROMPTS[settings.language][: settings.max_samples]
    return [Example((Message("user", prompt),), None, source=settings.language) for prompt in chosen]


def decoding_of(tool: Tool[CompareArguments]) -> Decoding:
    """How answers are written: as `--decoding` says, or as the flags that were given suggest."""
    settings = tool.settings
    method: Method = "greedy"
    if settings.decoding != "auto":
        method = (
            "diverse beam"
            if settings.decoding == "beam" and settings.num_beam_groups > 1
            else settings.decoding
        )
    elif settings.num_beams > 1:
        method = "diverse beam" if settings.num_beam_groups > 1 else "beam"
    elif "penalty_alpha" in tool.given:
        method = "contrastive"
    elif tool.given & {"top_k", "top_p", "temperature"}:
        method = "sampling"
    decoding = Decoding(
        method,
        settings.max_new_tokens,
        answers=settings.num_return_sequences,
        beams=settings.num_beams,
        groups=settings.num_beam_groups,
        diversity_penalty=settings.diversity_penalty,
        top_k=settings.top_k,
        top_p=settings.top_p,
        temperature=settings.temperature,
        penalty_alpha=settings.penalty_alpha,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        seed=settings.seed,
    )
    decoding.check()
    # sampling without a word on top_k draws from the whole vocabulary: its default belongs to contrastive search
    return replace(decoding, top_k=0) if method == "sampling" and "top_k" not in tool.given else decoding


def shown(example: Example) -> str:
    """The prompt as a person reads it."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(message.content for message in example.prompt)


def show(rows: list[dict[str, Any]]) -> None:
    """The answers beside each other."""
    table = Table(title="The same prompts, answered by both models", show_lines=True)
    for heading in ("prompt", "baseline", "fine-tuned"):
        table.add_column(heading, ratio=1, overflow="fold")
    for row in rows:
        both = (row["baseline"], row["finetuned"])
        columns = ["\n———\n".join(text.strip() for text in texts) for texts in both]
        table.add_row(Text(str(row["prompt"]).strip()), *map(Text, columns))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
