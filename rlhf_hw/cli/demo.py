"""`rlhf-hw demo`, `make demo`, `python train.py --demo`: base model to aligned model in a few minutes.

A small language model is made from scratch, fine-tuned on demonstrations of mixed quality, given a reward model learnt
from pairs of answers, improved by PPO against that reward model, and judged on held-out prompts by a score that no
stage has seen. Each stage is the ordinary command; its line is printed before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backends import Backend, resolve
from rlhf_hw.cli import merge, ppo, reward, sft
from rlhf_hw.cli.entry import command
from rlhf_hw.demo.base_model import make_base
from rlhf_hw.demo.comparison import Comparison, compare
from rlhf_hw.errors import UserError
from rlhf_hw.run_files import read_metrics

ANSWER_TOKENS = 56
SAMPLES_SHOWN = 3

SFT_FLAGS = "--full_finetune --num_train_epochs 4.5 --per_device_train_batch_size 16 --learning_rate 3e-3 --warmup_steps 80 --lr_scheduler_type cosine --weight_decay 0.1 --adam_beta2 0.95 --logging_steps 100 --save_strategy no"
REWARD_FLAGS = "--full_finetune --num_train_epochs 2 --per_device_train_batch_size 16 --learning_rate 5e-4 --warmup_steps 20 --lr_scheduler_type cosine --weight_decay 0.1 --logging_steps 40 --save_strategy no"
PPO_FLAGS = f"--steps 1536 --batch_size 128 --mini_batch_size 32 --gradient_accumulation_steps 1 --ppo_epochs 2 --learning_rate 1e-3 --lora_rank 16 --lora_alpha 32 --lora_dropout 0 --lora_all_linear --init_kl_coef 0.05 --adap_kl_ctrl False --use_score_scaling --use_score_norm --missing_eos_penalty 1 --output_max_length {ANSWER_TOKENS} --eval_prompts 100"


@dataclass
class Report:
    """What the demo found; written as demo.json."""

    directory: str
    seconds: dict[str, float] = field(default_factory=dict)
    sft_perplexity: float = 0.0
    reward_accuracy: float = 0.0
    reward_accuracy_interval: tuple[float, float] = (0.0, 0.0)
    gold_sft: float = 0.0
    gold_ppo: float = 0.0
    win_rate: float = 0.0
    win_rate_interval: tuple[float, float] = (0.0, 0.0)
    score_before: float = 0.0
    score_after: float = 0.0
    kl: float = 0.0


@command("demo")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after another, then show the table and answers side by side."""
    arguments = build_parser().parse_args(argv)
    backend = resolve(arguments.device)
    directory = fresh_directory(Path(arguments.output_dir))
    report = Report(str(directory))
    stages = demo_stages(directory, arguments.device, arguments.seed)
    with timed(report, "base model"):
        make_base(str(directory / "base"), arguments.seed)
    for name, run, words in stages:
        print(f"\n$ rlhf-hw {name} {shlex.join(words)}", flush=True)
        with timed(report, name):
            status = run(words)
        if status != 0:
            return status
    with timed(report, "comparison"):
        comparison = compare(directory / "sft", directory / "merged", backend, ANSWER_TOKENS, arguments.seed)
    collect(report, directory, comparison)
    (directory / "demo.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    show(report, comparison, backend)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags of the demo."""
    parser = argparse.ArgumentParser(
        prog="rlhf-hw demo",
        description="Base model to aligned model on the embedded example: SFT, reward model, PPO, merge, comparison.",
    )
    parser.add_argument(
        "--output_dir", default="runs/demo", help="where to work (default: runs/demo; never overwritten)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same table (default: 0)")
    return parser


Stage = tuple[str, Callable[[Sequence[str]], int], list[str]]


def demo_stages(directory: Path, device: str, seed: int) -> list[Stage]:
    """(command, its main, its arguments) of each stage."""
    data = resources.files("rlhf_hw.demo")
    alike = ["--device", device, "--seed", str(seed), "--do_train", "--do_eval"]
    held_out = ["--validation_file", str(data / "heldout.jsonl")]
    pairs = ["--train_file", str(data / "train.jsonl"), *held_out]
    demonstrations = ["--train_file", str(data / "demonstrations.jsonl"), *held_out]

    def at(name: str) -> str:
        return str(directory / name)

    sft_words = ["--model_name_or_path", at("base"), *demonstrations, "--output_dir", at("sft")]
    reward_words = ["--model_name_or_path", at("sft"), *pairs, "--output_dir", at("reward")]
    ppo_words = [
        "--model_name",
        at("sft"),
        "--reward_model_name",
        at("reward"),
        *pairs,
        "--output_dir",
        at("ppo"),
    ]
    return [
        ("sft", sft.main, [*sft_words, *SFT_FLAGS.split(), *alike]),
        ("reward", reward.main, [*reward_words, *REWARD_FLAGS.split(), *alike]),
        ("ppo", ppo.main, [*ppo_words, *PPO_FLAGS.split(), *alike]),
        (
            "merge",
            merge.main,
            ["--adapter_model_name", at("ppo"), "--output_name", at("merged"), "--torch_dtype", "float32"],
        ),
    ]


def fresh_directory(wanted: Path) -> Path:
    """`wanted`, or with a number behind it where there is something already."""
    number, directory = 1, wanted
    while directory.exists() and (directory.is_file() or any(directory.iterdir())):
        number += 1
        directory = wanted.with_name(f"{wanted.name}-{number}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir: cannot make {directory}: {error.strerror}; name another") from error
    return directory


class timed:
    """Adds the seconds of a block to the report."""

    def __init__(self, report: Report, name: str) -> None:
        self.report, self.name = report, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.report.seconds[self.name] = round(time.perf_counter() - self.start, 1)


def collect(report: Report, directory: Path, comparison: Comparison) -> None:
    """Fill the report from what the stages logged and from the comparison."""
    before_sft, after_sft = evaluations(directory / "sft")
    del before_sft
    _, after_reward = evaluations(directory / "reward")
    before_ppo, after_ppo = evaluations(directory / "ppo")
    report.sft_perplexity = after_sft["eval_perplexity"]
    report.reward_accuracy = after_reward["eval_accuracy"]
    report.reward_accuracy_interval = (after_reward["eval_accuracy_low"], after_reward["eval_accuracy_high"])
    report.score_before, report.score_after = before_ppo["eval_scores"], after_ppo["eval_scores"]
    report.kl = after_ppo["eval_kl"]
    report.gold_sft, report.gold_ppo = comparison.mean_gold()
    report.win_rate, report.win_rate_interval = comparison.win_rate, comparison.win_rate_interval


def evaluations(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """First and last evaluation that a stage logged."""
    rows = [row for row in read_metrics(directory).rows if any(name.startswith("eval_") for name in row)]
    return rows[0], rows[-1]


def show(report: Report, comparison: Comparison, backend: Backend) -> None:
    """The samples and the table."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    samples = Table(title="Held-out prompts, answered before and after PPO (gold score)", show_lines=True)
    for heading in ("prompt", "SFT", "PPO"):
        samples.add_column(heading, ratio=1)
    for i in range(SAMPLES_SHOWN):
        old, new = comparison.before[i], comparison.after[i]
        samples.add_row(
            comparison.prompts[i].strip(),
            f"{old.text.strip()}  ({old.gold:.2f})",
            f"{new.text.strip()}  ({new.gold:.2f})",
        )
    low, high = report.win_rate_interval
    accuracy_low, accuracy_high = report.reward_accuracy_interval
    table = Table(title=f"From base model to aligned model on {backend.name}")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    rows = (
        ("SFT perplexity", f"{report.sft_perplexity:.2f}", "of good answers to held-out prompts"),
        ("reward accuracy", f"{report.reward_accuracy:.3f}", f"held-out pairs; 95% interval {accuracy_low:.3f}–{accuracy_high:.3f}"),
        ("reward score", f"{report.score_before:.2f} → {report.score_after:.2f}", "what PPO optimised, on held-out prompts"),
        ("gold score", f"{report.gold_sft:.3f} → {report.gold_ppo:.3f}", "what PPO never saw; SFT → PPO"),
        ("win rate", f"{report.win_rate:.1%}", f"PPO against SFT by gold score; 95% interval {low:.1%}–{high:.1%}"),
        ("KL", f"{report.kl:.2f}", "nats an answer between PPO and SFT"),
    )  # fmt: skip
    for row in rows:
        table.add_row(*row)
    for name, seconds in report.seconds.items():
        table.add_row(f"time: {name}", f"{seconds:.1f} s", "")
    table.add_row("time: all", f"{sum(report.seconds.values()):.1f} s", "")
    console.print(samples)
    console.print(table)
    print(
        f"everything is in {report.directory}: reports in sft/, reward/ and ppo/ (report.html), the model in merged/"
    )
    print(f"talk to it: rlhf-hw chat --path {report.directory}/merged")


if __name__ == "__main__":
    sys.exit(main())
