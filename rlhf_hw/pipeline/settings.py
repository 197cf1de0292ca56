"""What `train.py` is told: the two models, the machines, the data, and flags for single steps."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_hw.arguments.config_file import read_settings, words
from rlhf_hw.arguments.one_line import OneLineParser
from rlhf_hw.arguments.presets import PRESETS
from rlhf_hw.errors import UserError

#: Number → the command that runs it.
STEPS = {1: "sft", 2: "reward", 3: "ppo"}
#: How flags for a step begin: --sft.learning_rate 1e-5.
PREFIXES = {"sft": (1,), "rm": (2,), "reward": (2,), "ppo": (3,), "all": (1, 2, 3)}
DEPLOYMENTS = ("single_gpu", "single_node", "multi_node")
#: The sizes by which DeepSpeed-Chat's train.py names OPT models.
OPT_SIZES = ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")
_STEP_FLAG = re.compile(rf"--({'|'.join(PREFIXES)})\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class PipelineSettings:
    """The settings of a pipeline. `own`: words for each step beyond what the pipeline gives it."""

    options: argparse.Namespace
    own: dict[int, list[str]] = field(default_factory=dict)


def parse_pipeline(argv: Sequence[str]) -> PipelineSettings:
    """The settings on the command line, over those of `--config`. Bad input ends the process: one line, status 2."""
    parser = build_parser()
    try:
        file, rest = _split_config(list(argv))
        own_words, own = _split_steps([*file, *rest])
    except UserError as problem:
        parser.error(str(problem))
    options = parser.parse_args(own_words)
    if options.deployment_type != "multi_node" and (options.hostfile or options.machine_rank is not None):
        parser.error("--hostfile, --machine-rank: are for --deployment-type multi_node; give that too")
    if options.deployment_type == "multi_node" and not options.hostfile:
        parser.error(
            "--hostfile: --deployment-type multi_node needs the machines, lines of 'host slots=8'; name the file"
        )
    if options.dataset_name and options.train_file:
        parser.error("--dataset_name and --train_file: both were given; give one")
    if options.price_per_hour is not None and options.price_per_hour < 0:
        parser.error(f"--price-per-hour: got {options.price_per_hour}, expected at least 0")
    return PipelineSettings(options, own)


def build_parser() -> argparse.ArgumentParser:
    """The flags of the pipeline itself."""
    parser = OneLineParser(
        prog="rlhf-hw train",
        description="Supervised fine-tuning, reward model and PPO, one after the other, each a process of its own. A step "
        "that is complete is skipped, so after a failure the same command goes on. It ends with a table of times, cost "
        "and results. train.py --demo runs the embedded example instead.",
        epilog="Flags for one step stand behind its name: --sft.learning_rate 1e-5, --rm.num_train_epochs 1, --ppo.steps "
        "5000; --all.bf16 False for every step. In a --config file they are groups: sft, rm, ppo, all.",
        allow_abbrev=False,
    )

    def add(name: str, *more: str, **keywords: Any) -> None:
        spellings = dict.fromkeys(
            f"--{word}" for one in (name, *more) for word in (one, one.replace("-", "_"))
        )
        parser.add_argument(*spellings, **keywords)

    add(
        "step",
        type=int,
        nargs="+",
        choices=tuple(STEPS),
        default=list(STEPS),
        help="which steps (default: 1 2 3)",
    )
    add(
        "actor-model",
        default="facebook/opt-1.3b",
        help="the model to align: a directory, hub name, or OPT's size (1.3b)",
    )
    add("reward-model", default="facebook/opt-350m", help="the model that the reward model starts from")
    add("deployment-type", choices=DEPLOYMENTS, default="single_gpu", help="one process, all of this machine's, or several "
        "machines (default: single_gpu)")  # fmt: skip
    add("output-dir", default="./output", help="where each step gets its folder (default: ./output)")
    add("actor-zero-stage", choices=("", "0", "1", "2", "3"), default="", help="DeepSpeed ZeRO of steps 1 and 3 (default: "
        "no DeepSpeed)")  # fmt: skip
    add(
        "reward-zero-stage",
        choices=("", "0", "1", "2", "3"),
        default="",
        help="… of step 2, and of step 3's critic",
    )
    add("preset", choices=("none", *PRESETS), default="deepspeed-chat", help="whose settings stand where no flag says "
        "otherwise (default: deepspeed-chat)")  # fmt: skip
    add(
        "dataset-name",
        "data-path",
        nargs="+",
        help="one data set or several, for every step (default: Dahoas/rm-static)",
    )
    add("train-file", help="training data in a file, instead of data sets")
    add("validation-file", help="evaluation data in a file")
    add(
        "data-split",
        default="2,4,4",
        help="the steps' shares of the data; none: every step gets all (default: 2,4,4)",
    )
    add("device", default="auto", help="auto, cpu, cuda or hpu (default: auto)")
    add("seed", type=int, default=None, help="of every step (default: the preset's)")
    add("hostfile", help="multi_node: lines of 'host slots=8'")
    add("machine-rank", type=int, help="multi_node: this machine's place among them, from 0")
    add("launcher", default="auto", help="how processes start: auto, torchrun, deepspeed, mpirun, accelerate")
    add("price-per-hour", type=float, help="what the machines cost an hour, for the table")
    add(
        "redo",
        type=int,
        nargs="+",
        choices=tuple(STEPS),
        default=[],
        help="run these steps again though they are complete",
    )
    add("config", metavar="FILE", help="settings from a YAML or JSON file; the command line beats it")
    add("dry-run", action="store_true", help="print the commands of the steps and run nothing")
    return parser


def model_name(name: str) -> str:
    """1.3b → facebook/opt-1.3b, as DeepSpeed-Chat's train.py takes it; other names and paths as they are."""
    size = name.removeprefix("opt-")
    return f"facebook/opt-{size}" if size in OPT_SIZES and not Path(name).exists() else name


def short_name(name: str) -> str:
    """facebook/opt-1.3b → 1.3b: what the folder of a model's step is called."""
    return Path(model_name(name)).name.removeprefix("opt-") or "model"


def _split_config(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the words that the `--config` file stands for, the other words)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    found, rest = parser.parse_known_args(argv)
    if found.config is None:
        return [], rest
    meant: list[str] = []
    for key, value in read_settings(found.config, lambda key: key in PREFIXES).settings:
        if isinstance(value, dict):
            for name, one in value.items():
                meant += _words(found.config, f"{key}.{name}", one)
        else:
            meant += _words(found.config, key, value)
    return meant, rest


def _words(path: str, key: str, value: Any) -> list[str]:
    if value is None:
        raise UserError(f"{path}: {key}: got null, expected a value; give one or leave it out")
    if key.replace("-", "_") == "dry_run":  # a switch without a value
        return ["--dry-run"] if value else []
    return words(key, value)


def _split_steps(argv: list[str]) -> tuple[list[str], dict[int, list[str]]]:
    """(words of the pipeline itself, words for each step): a step's flag takes the words up to the next flag."""
    rest: list[str] = []
    own: dict[int, list[str]] = {number: [] for number in STEPS}
    targets: tuple[int, ...] = ()
    for word in argv:
        match = _STEP_FLAG.fullmatch(word)
        if match:
            targets, word = PREFIXES[match[1]], f"--{match[2]}"
        elif word.startswith("--"):
            targets = ()
        for number in targets:
            own[number].append(word)
        if not targets:
            rest.append(word)
    return rest, own
