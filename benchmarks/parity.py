"""How far 20 steps of each stage on each device lie from the CPU's: writes docs/parity.md.

    python benchmarks/parity.py --environment .venv-hpu/bin/python --environment .venv-cuda/bin/python

Each environment needs the emulator, or a Gaudi. The runs are those of tests/hpu/test_parity.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "full": "all weights, fp32, SGD",
    "lora": "LoRA, fp32, SGD",
    "graphs": "LoRA, fp32, SGD, HPU graphs",
    "cached": "LoRA, fp32, SGD, HPU graphs, kept cache in buckets",
    "accumulated": "two micro-batches a step, fp32, SGD",
    "gpt2": "GPT-2, fp32, SGD",
    "opt": "OPT, fp32, SGD",
    "qwen2": "Qwen2, fp32, SGD",
    "adamw": "all weights, fp32, torch's AdamW",
    "fused": "all weights, fp32, the fused AdamW against torch's",
    "bf16": "all weights, bf16, SGD",
}
STAGES = {"sft": "SFT", "reward": "reward model", "ppo": "PPO"}


def main() -> int:
    """Run everything in each environment and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", type=Path, action="append", help="a Python that has the libraries")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "parity.md")
    arguments = parser.parse_args()
    found = [measured(python) for python in arguments.environment or [Path(sys.executable)]]
    arguments.page.write_text("\n".join(page(found)) + "\n")
    return 0


def measured(python: Path) -> dict[str, Any]:
    """The differences in one environment."""
    with tempfile.TemporaryDirectory() as work:
        command = [str(python), str(ROOT / "tests" / "hpu" / "parity.py"), work]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=1200
        )
    if done.returncode != 0:
        raise SystemExit(f"{python}: {done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def page(found: list[dict[str, Any]]) -> list[str]:
    """The Markdown, line by line."""
    emulated = any(environment["emulated"] for environment in found)
    lines = [
        "# Parity: the same 20 steps on each device",
        "",
        f"Made by `benchmarks/parity.py` on {datetime.date.today().isoformat()}; `tests/hpu/test_parity.py` holds the "
        "tolerances.",
        "",
    ]
    if emulated:
        lines += [
            "**`hpu` is the emulator in `hpu_emulator/` here: real `hpu` tensors, optimum-habana's and transformers' own "
            "code for Gaudis, but the arithmetic of a CPU. No number on this page was taken on a Gaudi.**",
            "",
        ]
    lines += [
        "The commands of the three stages train a tiny model (a Llama where nothing else is said) for 20 optimizer steps "
        "from the same weights and data, dropout off; PPO's are five updates with a reward model. Given are the largest "
        "differences of any step from the CPU's run in the same environment, of the loss and of the gradient norm before "
        "clipping, relative to their mean size in the run (PPO's loss passes through zero). Shapes are the device's own: "
        "batches in fixed buckets on hpu, as short as can be on the CPU. *Answers alike*: PPO's own, the same to the token.",
        "",
    ]
    for environment in found:
        versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
        lines += [
            f"## {versions}",
            "",
            "| stage | run | device | loss | gradient norm | answers alike |",
            "|---|---|---|---|---|---|",
        ]
        order = list(VARIANTS)
        for device, stage, variant, loss, norm, same in sorted(
            environment["rows"], key=lambda row: (list(STAGES).index(row[1]), order.index(row[2]))
        ):
            answers = "" if same is None else f"{same[0]} of {same[1]}"
            lines.append(
                f"| {STAGES[stage]} | {VARIANTS[variant]} | {device} | {loss:.0e} | {norm:.0e} | {answers} |"
            )
        lines += [
            "",
            *(ON_ONE_DEVICE if environment["to the bit"] else []),
        ]
    return lines + WHY


ON_ONE_DEVICE = [
    "On hpu alone, all three stages: a run resumed from a checkpoint in the middle, and one with "
    "`--gradient_checkpointing`, end with the weights of the plain run, bit for bit.",
    "",
]
WHY = [
    "## Where the differences come from",
    "",
    "- fp32 with SGD: the order of additions (another attention kernel, padding to other widths).",
    "- AdamW: it divides each gradient by its own size, also those that are rounding alone. PPO feeds that back: once a "
    "probability has moved across the uniform number that draws a token, the runs are two draws of one experiment.",
    "- The fused AdamW adds epsilon before the bias correction, torch's after it: in the first steps it weighs 30 times "
    "as much.",
    "- OPT: its ReLU has a kink. An input that rounding moves across zero changes the gradient at once.",
    "- bf16 keeps 8 bits, and each kernel rounds at other places. PPO draws other tokens from the first update on.",
]


if __name__ == "__main__":
    sys.exit(main())
