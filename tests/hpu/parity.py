"""Starts `parity_runs.py` for each device of this environment and works out how far their runs lie from the CPU's.

    PYTHONPATH=.:tests python tests/hpu/parity.py WORK

prints all of it as one line of JSON, for benchmarks/parity.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import tiny_materials
import torch
from parity_runs import MODELS, STAGES

from backends.hpu import HPUBackend

HERE = Path(__file__).resolve().parent
OPTIMUM = find_spec("optimum") is not None and find_spec("optimum.habana") is not None
#: The mode in which everything is run; the others run less.
MAIN = "hpu-optimum-lazy" if OPTIMUM else "hpu-native-eager"
OTHERS = ("hpu-optimum-eager", "hpu-native-eager") if OPTIMUM else ("hpu-native-lazy",)
COMPARED = ("full", "lora", "adamw", "bf16", "accumulated")
REFERENCE = [
    *(f"{stage}-{variant}" for stage in STAGES for variant in COMPARED),
    *(f"sft-{m}" for m in MODELS),
]
ON_ONE_DEVICE = [f"{stage}-{variant}" for stage in STAGES for variant in ("checkpointing", "resumed")]
#: PPO whose four roles are adapters of one base
SHARED, SHARED_RESUMED = "ppo-shared", "ppo-sharedresumed"
#: HPU graphs exist in lazy mode only; caches that are kept and buckets are optimum-habana's.
LAZY = "hpu-optimum-lazy" if OPTIMUM else "hpu-native-lazy"
GRAPHS = [*(f"{stage}-graphs" for stage in STAGES), *(["ppo-cached"] if OPTIMUM else [])]
#: What these variants are compared with; the others with themselves.
PLAIN = {"fused": "adamw", "graphs": "lora", "cached": "lora"}
FUSED = [f"{stage}-fused" for stage in STAGES] if OPTIMUM else []
SHORT = [f"{stage}-{variant}" for stage in STAGES for variant in ("full", "lora")]
ACCUMULATED = [f"{stage}-accumulated" for stage in STAGES]
TIME_LIMIT = 400  # seconds a process; it takes about 40 where it has a core to itself


@dataclass(frozen=True)
class Difference:
    """Largest differences over all steps, relative to the mean size in the run: PPO's loss passes through zero."""

    loss: float
    gradient_norm: float
    first_loss: float
    first_norm: float


def cases_by_device() -> dict[str, list[str]]:
    """What runs where in this environment."""
    cases = {"cpu": [*REFERENCE, SHARED], MAIN: [*REFERENCE, *ON_ONE_DEVICE, *FUSED, SHARED, SHARED_RESUMED]}
    cases |= dict.fromkeys(OTHERS, SHORT)
    cases[LAZY] = [*cases[LAZY], *GRAPHS]
    if torch.cuda.is_available():
        cases["cuda"] = REFERENCE
    return cases


def run_all(work: Path) -> None:
    """Everything, two processes at a time, the longest first."""
    tiny_materials.make(work)
    plan = [(device, cases, 1) for device, cases in cases_by_device().items()]
    plan.insert(2, (MAIN, ACCUMULATED, 2))
    plan.sort(key=lambda entry: -len(entry[1]))
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(run, work, *entry) for entry in plan]:
            started.result()


def run(work: Path, device: str, cases: list[str], processes: int = 1) -> None:
    """One process, or two joined by the device's collectives.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, str(HERE / "parity_runs.py"), str(work), device, *cases]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command[1:1] = torchrun
    # optimum-habana asks the pip on PATH for the version of the Gaudi software
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"HPU_EMULATOR_QUIET": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PT_HPU_LAZY_MODE", None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=TIME_LIMIT
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{device}: exit status {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}"
        )


def result(work: Path, device: str, case: str) -> dict[str, Any]:
    """What parity_runs.py wrote."""
    found: dict[str, Any] = json.loads((work / device / f"{case}.json").read_text())
    return found


def difference(expected: dict[str, Any], found: dict[str, Any], steps: int | None = None) -> Difference:
    """Of the first `steps` steps of two runs, all by default."""
    assert [row["step"] for row in found["steps"]] == [row["step"] for row in expected["steps"]]

    def column(rows: dict[str, Any], name: str) -> list[float]:
        return [row[name] for row in rows["steps"][:steps]]

    largest, first = [], []
    for name in ("loss", "gradient_norm"):
        wanted = column(expected, name)
        size = mean(map(abs, wanted))
        apart = [abs(a - b) / size for a, b in zip(wanted, column(found, name), strict=True)]
        largest.append(max(apart))
        first.append(apart[0])
    return Difference(*largest, *first)


def measured(work: Path) -> dict[str, Any]:
    """The differences that docs/parity.md shows, of what `run_all` left in `work`.

    `rows`: [device, stage, variant, loss, gradient norm, answers alike and their number (PPO)].
    """
    rows: list[list[Any]] = []
    for device, cases in cases_by_device().items():
        for case in cases:
            stage, variant = case.split("-")
            if device == "cpu" or case in (*ON_ONE_DEVICE, SHARED, SHARED_RESUMED):
                continue
            reference = f"{stage}-{PLAIN.get(variant, variant)}"
            expected, found = result(work, "cpu", reference), result(work, device, case)
            apart, alike = difference(expected, found), None
            if stage == "ppo":
                pairs = list(zip(found["answers"], expected["answers"], strict=True))
                alike = [sum(a == b for a, b in pairs), len(pairs)]
            rows.append([device, stage, variant, apart.loss, apart.gradient_norm, alike])
    for case in ACCUMULATED:
        apart = difference(result(work, MAIN, case), result(work, f"{MAIN}-2", case))
        rows.append(
            [f"{MAIN}, two devices against one", *case.split("-"), apart.loss, apart.gradient_norm, None]
        )
    packages = ["torch", "transformers", "accelerate", *(["optimum-habana"] if OPTIMUM else [])]
    return {
        "versions": {name: version(name) for name in packages},
        "emulated": HPUBackend.emulated(),
        "to the bit": all(same_to_the_bit(work, case) for case in ON_ONE_DEVICE),
        "rows": rows,
    }


def same_to_the_bit(work: Path, case: str) -> bool:
    """Whether a resumed run, or one that recomputes activations, took the plain run's steps to the same weights."""
    plain, other = result(work, MAIN, f"{case.split('-')[0]}-full"), result(work, MAIN, case)
    steps = other["steps"]
    return bool(plain["steps"][-len(steps) :] == steps and plain["digest"] == other["digest"])


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
    print(json.dumps(measured(Path(sys.argv[1]))))
