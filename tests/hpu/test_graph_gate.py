"""After the first optimizer step (PPO: the first update) nothing compiles a graph any more.

With several buckets, two micro-batches a step, log lines and evaluations. Counted by the emulator in lazy mode.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_materials
from parity import OPTIMUM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "counted_run.py"
RUNTIME = "optimum" if OPTIMUM else "native"
EVERY = (
    f"--hpu_runtime {RUNTIME} --use_lazy_mode True --overwrite_output_dir --do_train --do_eval --report_to none "
    "--eval_strategy steps --save_strategy no --per_device_eval_batch_size 4 --gradient_accumulation_steps 2 "
    "--tokenizer_name {work}/llama --train_file {work}/train.jsonl --validation_file {work}/eval.jsonl"
)
STEPS = "--max_steps 21 --per_device_train_batch_size 2 --logging_steps 3 --eval_steps 8"
COMMANDS = {
    "sft": f"--warm-steps 1 sft {EVERY} {STEPS} --model_name_or_path {{work}}/llama --max_seq_length 48",
    "reward": f"--warm-steps 1 reward {EVERY} {STEPS} --model_name_or_path {{work}}/llama --max_length 48",
    # 11 updates of two optimizer steps
    "ppo": f"--warm-steps 2 ppo {EVERY} --model_name {{work}}/llama --reward_model_name {{work}}/reward --steps 88 "
    "--batch_size 8 --mini_batch_size 2 --ppo_epochs 1 --output_max_length 8 --max_prompt_length 16 --eval_steps 4",
}
OPTIONS = {
    "full": "--full_finetune --bf16 False",
    "lora": "--peft lora --bf16 True",
    "checkpointing": "--full_finetune --bf16 True --gradient_checkpointing",
    "hpu_graphs": "--peft lora --bf16 True --use_hpu_graphs_for_inference --use_hpu_graphs_for_training",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("graphs")
    tiny_materials.make(directory)
    return directory


def counted(work: Path, stage: str, options: str) -> dict[str, Any]:
    """What counted_run.py wrote of one run."""
    words = f"{COMMANDS[stage]} {options}".format(work=work).split()
    result = work / "graphs.json"
    result.unlink(missing_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"HPU_EMULATOR_QUIET": "1", "HF_DATASETS_CACHE": str(work / "cache")}
    environment.pop("PT_HPU_LAZY_MODE", None)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(result), *words, "--output_dir", str(work / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.read_text())
    return found


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("stage", COMMANDS)
def test_no_graph_is_new_after_the_first_step(work: Path, stage: str, option: str) -> None:
    found = counted(work, stage, OPTIONS[option])
    assert found["new_graphs"] == 0, "\n".join(found["causes"])
    assert found["warm_graphs"] > 10
    assert found["steps"] - found["warm_steps"] == 20
    assert found["evaluations"] >= 2
    assert len(found["widths"]) > 1 or stage == "ppo"


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_shapes_that_vary_compile_graphs_all_along(work: Path, stage: str) -> None:
    """Else the counts above would show nothing."""
    found = counted(work, stage, "--dynamic --full_finetune --bf16 False")
    assert found["new_graphs"] > 20
