"""The flags of `rlhf-hw estimate`: a few of its own, and all of the stage that it is asked about."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from backends.cards import CARDS
from rlhf_hw.arguments.one_line import OneLineParser
from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.arguments.sharding import without_deepspeed_installed
from rlhf_hw.estimate.known_models import KNOWN

_STAGES: dict[str, Callable[[Sequence[str]], Run]] = {
    "sft": parse_sft,
    "reward": parse_reward,
    "ppo": parse_ppo,
}
#: a stage by the script that a user may have before it
_SCRIPTS = {"finetune_clm.py": "sft", "reward_modeling.py": "reward", "rl_training.py": "ppo"}
_DATA = ("--dataset_name", "--train_file", "--sft_only_data_path", "--data_path")


@dataclass(frozen=True)
class Asked:
    """What was asked about. notes: lines on what was assumed because it was not said."""

    stage: str
    run: Run
    card: str | None
    memory: float | None  #: GiB
    processes: int
    sizes: str | None
    advice: bool
    json: bool
    notes: tuple[str, ...]


def parse_estimate(argv: Sequence[str]) -> Asked:
    """The settings on the command line. Bad input ends the process: one line, exit status 2."""
    parser = _parser()
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        parser.parse_args(["--help"])
    stage = _SCRIPTS.get(words[0].rsplit("/", 1)[-1], words[0])
    if stage not in _STAGES:
        parser.error(
            f"no stage {words[0]!r}; there are {', '.join(_STAGES)}, each with its own flags after it"
        )
    own, flags = parser.parse_known_args(words[1:])
    if own.card is not None and own.card not in CARDS:
        parser.error(f"--card: got {own.card!r}, expected one of {', '.join(CARDS)}")
    if own.processes < 1:
        parser.error(f"--processes: got {own.processes}, expected at least 1")
    if own.memory is not None and not (isfinite(own.memory) and own.memory > 0):
        parser.error(f"--memory: got {own.memory:g}, expected GiB above 0")
    assumed, notes = _assumed(stage, flags, own.sizes)
    with without_deepspeed_installed():
        run = _STAGES[stage]([*flags, *assumed])
    return Asked(
        stage=stage,
        run=run,
        card=own.card,
        memory=own.memory,
        processes=own.processes,
        sizes=own.sizes,
        advice=own.advice,
        json=own.json,
        notes=tuple(notes),
    )


def _assumed(stage: str, flags: list[str], sizes: str | None) -> tuple[list[str], list[str]]:
    """(flags that the stage wants and memory does not depend on, or is told what was assumed; lines on the latter)."""
    given = {
        word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in flags if word.startswith("--")
    }
    words: list[str] = []
    notes: list[str] = []
    named = given & {"--model_name", "--model_name_or_path"}
    if sizes is not None and not named:
        words += ["--model_name_or_path", "sizes"]
        named = {"--model_name_or_path"}
    if not named or given & {"--config", "--dialect", "--preset"} or (flags and not flags[0].startswith("-")):
        return words, notes
    if stage != "ppo" and "--output_dir" not in given:
        words += ["--output_dir", "runs/estimate"]
    if stage == "sft" and not given.intersection(_DATA):
        words += ["--dataset_name", "any"]
    if stage == "ppo" and not given & {
        "--reward_model_name",
        "--reward_model_name_or_path",
        "--reward_function",
    }:
        flag = next(iter(named))
        model = "sizes" if words else _value(flags, flag)
        words += ["--reward_model_name", model]
        notes.append(
            "no --reward_model_name: one trained from the policy's base is assumed (an adapter on it where --share_backbone allows)"
        )
    return words, notes


def _value(flags: Sequence[str], name: str) -> str:
    for place, word in enumerate(flags):
        flag, separator, value = word.partition("=")
        if flag.replace("-", "_").replace("__", "--", 1) == name:
            return value if separator else (flags[place + 1] if place + 1 < len(flags) else "")
    return ""


def _parser() -> argparse.ArgumentParser:
    parser: Any = OneLineParser(
        prog="rlhf-hw estimate",
        usage="rlhf-hw estimate sft|reward|ppo [--card NAME] [--processes N] [flags of the stage] ...",
        description="The memory that a stage will take, before anything loads: put `estimate` before its command. Its "
        "passes are run on tensors without storage, and what lives is counted, every row being as long as the flags allow.",
        epilog="The stage's flags: rlhf-hw sft --help, and so on. Models that are known without a download, by these names or "
        f"the hub's: {', '.join(KNOWN)}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--card", metavar="NAME", help=f"the card to fit: {', '.join(CARDS)}. Not said: this machine's device"
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory of the card (on a CPU: of each process), in place of what is known of it",
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes (cards) that train together (default: 1)"
    )
    parser.add_argument(
        "--sizes",
        metavar="LIST",
        help="a Llama of these sizes in place of a model: hidden=4096,layers=32,heads=32,vocab=32000[,kv_heads=8]"
        "[,intermediate=11008]",
    )
    parser.add_argument(
        "--no_advice", dest="advice", action="store_false", help="leave out what would fit: faster"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables; bytes")
    return parser
