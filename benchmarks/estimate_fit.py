"""Whether the largest micro-batch that `rlhf-hw estimate --memory GIB` suggests runs within that memory, and uses it.

    python benchmarks/estimate_fit.py

On a CPU, models and measurement as in `benchmarks/estimate.py`: memory is the process's, all that is resident. Writes its
rows to `--results`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from estimate import BF16, FULL, LORA, PPO, SFT, command_of, kept, make_materials

#: (name, flag of the micro-batch, flags, GiB)
CASES = (
    ("SFT, Llama, LoRA, bf16", "--per_device_train_batch_size", f"{SFT} {LORA} {BF16}", 2.0),
    ("SFT, Llama, full, bf16", "--per_device_train_batch_size", f"{SFT} {FULL} {BF16}", 2.5),
    ("PPO, Llama, LoRA, bf16", "--mini_batch_size", f"{PPO} {LORA} {BF16}", 1.2),
)


def suggested(words: Sequence[str], memory: float) -> int:
    """The largest micro-batch that fits, as `rlhf-hw estimate` has it."""
    from rlhf_hw.cli.estimate import main as estimate

    told = io.StringIO()
    with redirect_stdout(told):
        estimate([*words, "--memory", str(memory), "--json"])
    size = json.loads(told.getvalue())["largest_micro_batch"]
    if size is None:
        raise SystemExit(f"no micro-batch fits into {memory} GiB: {' '.join(words)}")
    return int(size)


def main() -> int:
    """Ask, run, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/estimate"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="where the rows go")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    make_materials(arguments.work)
    rows = []
    for name, flag, flags, memory in CASES:
        size = suggested(command_of(arguments.work, "cpu", "llama", flags), memory)
        accumulation = " --gradient_accumulation_steps 1" if flag == "--mini_batch_size" else ""
        peaks = kept(arguments.work, "cpu", "llama", f"{flags} {flag} {size}{accumulation}", 1)
        rows.append(
            {"case": name, "memory": int(memory * 2**30), "suggested": size, "peak": max(peaks.values())}
        )
        share = rows[-1]["peak"] / rows[-1]["memory"]
        print(f"{name}: {memory} GiB, {flag} {size} suggested, peak {share:.0%} of it", flush=True)
    (arguments.results / "estimate_fit.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["peak"] <= row["memory"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
