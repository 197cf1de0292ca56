"""How many graphs a Gaudi compiles in each stage on real preference data, with static shapes and without.

    python benchmarks/graph_counts.py --data train.jsonl.gz

The file has HH-RLHF's columns `chosen` and `rejected`. A tokenizer is trained and a small Llama is made on the spot, as
in hh_rlhf.py: what counts is the shapes. Needs the emulator (hpu_emulator/), and counts the optimum runtime in lazy mode
where optimum-habana is installed, the native one otherwise. Writes a table (Markdown) and its numbers (JSON) to
`--results`.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_hw.demo.base_model import build_base_model, build_tokenizer

OPTIMUM = find_spec("optimum") is not None and find_spec("optimum.habana") is not None
RUNTIME = "optimum" if OPTIMUM else "native"
EVERY = (
    f"--hpu_runtime {RUNTIME} --use_lazy_mode True --overwrite_output_dir --do_train --do_eval --report_to none "
    "--full_finetune --save_strategy no --eval_strategy steps --train_file {work}/train.jsonl "
    "--validation_file {work}/eval.jsonl"
)
STEPS = "--max_steps 21 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --logging_steps 5 --eval_steps 10"
STAGES = {
    "SFT": f"--warm-steps 1 sft {EVERY} {STEPS} --model_name_or_path {{work}}/base --max_seq_length 256",
    "reward model": f"--warm-steps 1 reward {EVERY} {STEPS} --model_name_or_path {{work}}/base --max_length 256",
    # 21 updates of four optimizer steps
    "PPO": f"--warm-steps 4 ppo {EVERY} --model_name {{work}}/base --reward_model_name {{work}}/reward --steps 168 "
    "--batch_size 8 --mini_batch_size 2 --gradient_accumulation_steps 2 --ppo_epochs 2 --output_max_length 32 "
    "--max_prompt_length 128 --eval_steps 10 --eval_prompts 8",
}
ROWS, HELD_OUT = 400, 8
CAUSES_KEPT = 8


def main() -> int:
    """Count each stage twice and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="HH-RLHF pairs (jsonl, may be gzipped)")
    parser.add_argument("--work", type=Path, default=Path("runs/graph-counts"), help="where the runs go")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="where the table goes"
    )
    arguments = parser.parse_args()
    make_materials(arguments.work, arguments.data)
    numbers = {
        stage: {name: counted(arguments.work, words, options) for name, options in KINDS.items()}
        for stage, words in STAGES.items()
    }
    write_results(arguments.results, numbers)
    return 0


KINDS = {"static": "", "dynamic": "--dynamic"}


def make_materials(work: Path, data: Path) -> None:
    """The first rows of the data, a tokenizer, a small Llama, and the same with one label."""
    from transformers import AutoModelForSequenceClassification

    opener = gzip.open if data.suffix == ".gz" else open
    with opener(data, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, ROWS + HELD_OUT)]
    work.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:ROWS]), ("eval", rows[ROWS:])):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = build_tokenizer((row["chosen"] for row in rows), vocab_size=2048)
    build_base_model(tokenizer, seed=0, hidden_size=64, layers=2).save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    AutoModelForSequenceClassification.from_pretrained(work / "base", num_labels=1).save_pretrained(
        work / "reward"
    )
    tokenizer.save_pretrained(work / "reward")


def counted(work: Path, words: str, options: str) -> dict[str, Any]:
    """What counted_run.py found, in a process of its own."""
    result = work / "counts.json"
    program = Path(__file__).with_name("counted_run.py")
    command = [sys.executable, str(program), str(result), *f"{options} {words}".format(work=work).split()]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HPU_EMULATOR_QUIET": "1", "PT_HPU_LAZY_MODE": "1"}
    subprocess.run([*command, "--output_dir", str(work / "out")], env=environment, check=True)
    found: dict[str, Any] = json.loads(result.read_text())
    return {**found, "causes": found["causes"][:CAUSES_KEPT]}


def write_results(results: Path, numbers: dict[str, dict[str, Any]]) -> None:
    """The table and its numbers."""
    packages = [
        "torch",
        "transformers",
        *(["optimum-habana"] if OPTIMUM else []),
        "habana-torch-plugin-emulator",
    ]
    versions = {name: version(name) for name in packages}
    date = datetime.date.today().isoformat()
    results.mkdir(parents=True, exist_ok=True)
    setting = {"date": date, "runtime": RUNTIME, "mode": "lazy", "versions": versions}
    (results / "graph_counts.json").write_text(json.dumps({"setting": setting, **numbers}, indent=1) + "\n")
    table = [
        "# Graphs that each stage compiles on HH-RLHF",
        "",
        f"{date}, {RUNTIME} runtime in lazy mode, {', '.join(f'{name} {number}' for name, number in versions.items())}. "
        "Made by `benchmarks/graph_counts.py`.",
        "",
        "Counted by the **emulator**: a graph is a sequence of operators, shapes and types between two flushes. No Gaudi "
        "compiled anything here. Micro-batches of four rows (PPO: two answers), two a step, evaluations and log lines "
        "on. *First*: distinct graphs up to the end of the first optimizer step, its log line included (PPO: of the "
        "first update). *New*: those first seen in the 20 steps after it (PPO: 20 updates, 80 steps).",
        "",
        "| stage | shapes | first | new | widths of the batches (tokens) | padding |",
        "|---|---|---|---|---|---|",
    ]
    for stage, kinds in numbers.items():
        for kind, found in kinds.items():
            widths = found["widths"]
            shown = (
                ", ".join(map(str, widths))
                if len(widths) < 6
                else f"{len(widths)} from {widths[0]} to {widths[-1]}"
            )
            table.append(
                f"| {stage} | {kind} | {found['warm_graphs']} | **{found['new_graphs']}** | {shown} | "
                f"{found['padding']:.0%} |"
            )
    table += [
        "",
        "Padding is the share of it in the batches trained on. *Dynamic* pads to the longest row of each batch, as on a "
        "GPU: the difference is what static shapes cost.",
    ]
    (results / "graph_counts.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    sys.exit(main())
