"""The three stages on real preference data: Anthropic's HH-RLHF, with a small model made from scratch.

    python benchmarks/hh_rlhf.py --train train.jsonl.gz --test test.jsonl.gz

The files have HH-RLHF's columns `chosen` and `rejected` (github.com/anthropics/hh-rlhf, MIT; the language is offensive
in places). A tokenizer is trained and a Llama of a few million parameters is made on the spot: nothing pretrained, so
the numbers show that the stages work on real text, not how good an aligned model can be. Writes a table (Markdown) and
its numbers (JSON) with versions and hardware to `--results`.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import sys
import time
from pathlib import Path

import torch
import transformers

from backends import resolve
from rlhf_hw.cli import ppo, reward, sft
from rlhf_hw.demo.base_model import build_base_model, build_tokenizer
from rlhf_hw.run_files import read_metrics

SFT = "--full_finetune --num_train_epochs 3 --per_device_train_batch_size 16 --learning_rate 1e-3 --warmup_steps 50 --lr_scheduler_type cosine --logging_steps 50 --save_strategy no --max_seq_length 256"
REWARD = "--full_finetune --num_train_epochs 2 --per_device_train_batch_size 16 --learning_rate 1e-4 --lr_scheduler_type linear --logging_steps 20 --save_strategy no --max_length 256"
PPO = "--steps 1280 --batch_size 64 --mini_batch_size 16 --gradient_accumulation_steps 1 --ppo_epochs 2 --learning_rate 5e-4 --lora_dropout 0 --lora_all_linear --init_kl_coef 0.05 --adap_kl_ctrl False --use_score_scaling --use_score_norm --output_max_length 48 --max_prompt_length 192 --eval_prompts 64"


def main() -> int:
    """Run the stages and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=Path, required=True, help="HH-RLHF training pairs (jsonl, may be gzipped)"
    )
    parser.add_argument("--test", type=Path, required=True, help="HH-RLHF test pairs")
    parser.add_argument("--work", type=Path, default=Path("runs/hh-rlhf"), help="where the runs go")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="where the table goes"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work, seed = arguments.work, str(arguments.seed)
    make_model(work / "base", arguments.train, arguments.seed)
    data = ["--train_file", str(arguments.train), "--validation_file", str(arguments.test)]
    alike = [*data, "--seed", seed, "--do_train", "--do_eval", "--overwrite_output_dir"]
    seconds = {}
    for name, run, words in (
        ("sft", sft.main, ["--model_name_or_path", f"{work}/base", *SFT.split()]),
        ("reward", reward.main, ["--model_name_or_path", f"{work}/sft", *REWARD.split()]),
        (
            "ppo",
            ppo.main,
            ["--model_name", f"{work}/sft", "--reward_model_name", f"{work}/reward", *PPO.split()],
        ),
    ):
        start = time.perf_counter()
        status = run([*words, *alike, "--output_dir", f"{work}/{name}"])
        if status != 0:
            return status
        seconds[name] = round(time.perf_counter() - start, 1)
    write_results(work, arguments.results, seconds)
    return 0


def make_model(directory: Path, train: Path, seed: int) -> None:
    """A tokenizer of the training text and a model with random weights."""
    opener = gzip.open if train.suffix == ".gz" else open
    with opener(train, "rt", encoding="utf-8") as lines:
        tokenizer = build_tokenizer((json.loads(line)["chosen"] for line in lines), vocab_size=4096)
    build_base_model(tokenizer, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_results(work: Path, results: Path, seconds: dict[str, float]) -> None:
    """The table and its numbers."""
    rows = {name: read_metrics(work / name).rows for name in seconds}
    evaluations = {
        name: [row for row in rows[name] if any(k.startswith("eval_") for k in row)] for name in rows
    }
    sft_before, sft_after = evaluations["sft"][0], evaluations["sft"][-1]
    judged = evaluations["reward"][-1]
    ppo_before, ppo_after = evaluations["ppo"][0], evaluations["ppo"][-1]
    curve = [
        {key: row[key] for key in ("ppo/update", "objective/scores", "objective/kl", "response/length_mean")}
        for row in rows["ppo"]
        if "objective/scores" in row
    ]
    backend = resolve("auto")
    setting = {
        "date": datetime.date.today().isoformat(),
        "hardware": backend.describe(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": seconds,
    }
    numbers = {
        "setting": setting,
        "sft": [sft_before, sft_after],
        "reward": judged,
        "ppo": [ppo_before, ppo_after],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "hh_rlhf.json").write_text(json.dumps({**numbers, "ppo_curve": curve}, indent=2) + "\n")
    table = [
        "# HH-RLHF, harmless-base, with a small model made from scratch",
        "",
        f"{setting['date']}, {backend.name}, torch {torch.__version__}, transformers {transformers.__version__}. "
        "Made by `benchmarks/hh_rlhf.py`; its docstring says what the numbers do and do not show.",
        "",
        "| what | value |",
        "|---|---|",
        f"| SFT perplexity on test answers | {sft_before['eval_perplexity']:.0f} → {sft_after['eval_perplexity']:.1f} |",
        f"| reward accuracy on test pairs | {judged['eval_accuracy']:.3f} (95% interval {judged['eval_accuracy_low']:.3f}"
        f"–{judged['eval_accuracy_high']:.3f}, {judged['eval_pairs']:.0f} pairs) |",
        f"| reward score on test prompts, before → after PPO | {ppo_before['eval_scores']:.3f} → {ppo_after['eval_scores']:.3f} |",
        f"| KL to the SFT model (nats an answer) | {ppo_after['eval_kl']:.2f} |",
        *(f"| seconds, {name} | {value:.0f} |" for name, value in seconds.items()),
        "",
        "PPO's reward curve (training prompts, mean of each update):",
        "",
        "| update | score | KL | answer tokens |",
        "|---|---|---|---|",
        *(
            f"| {row['ppo/update']} | {row['objective/scores']:.3f} | {row['objective/kl']:.2f} | "
            f"{row['response/length_mean']:.0f} |"
            for row in curve
        ),
    ]
    (results / "hh_rlhf.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    sys.exit(main())
