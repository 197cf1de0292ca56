"""After the first optimizer step (PPO: the first update) nothing compiles a graph any more.

With several buckets, two micro-batches a step, log lines and evaluations. Counted by the emulator in lazy mode.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_materials
from parity import OPTIMUM
from parity_runs import SHARED
from warm_process import WarmProcess, warm_process

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
# Curves take most of the time of runs as short as these; tests/report and tests/seed_commands draw them.
PRELOAD = (
    "import rlhf_hw.cli.sft, rlhf_hw.cli.reward, rlhf_hw.cli.ppo, rlhf_hw.report.report as report; "
    "report.draw_plots = lambda rows, directory, name: []"
)
if OPTIMUM:
    PRELOAD += "; from backends.optimum_habana import optimum_habana; optimum_habana()"
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


@pytest.fixture(scope="module")
def environment(work: Path) -> dict[str, str]:
    """Of every run. The mode is settled before torch is imported."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HPU_EMULATOR_QUIET": "1"}
    return {**os.environ, **ours, "HF_DATASETS_CACHE": str(work / "cache"), "PT_HPU_LAZY_MODE": "1"}


@pytest.fixture(scope="module")
def warm(environment: dict[str, str]) -> Iterator[WarmProcess]:
    with warm_process(PRELOAD, environment) as process:
        yield process


Counted = Callable[[str, str], dict[str, Any]]


@pytest.fixture
def counted(work: Path, warm: WarmProcess, environment: dict[str, str]) -> Counted:
    """What counted_run.py writes of a stage's run with some options."""

    def count(stage: str, options: str) -> dict[str, Any]:
        words = f"{COMMANDS[stage]} {options}".format(work=work).split()
        result, output = work / "graphs.json", work / "output.txt"
        result.unlink(missing_ok=True)
        words = [str(result), *words, "--output_dir", str(work / "out")]
        status = warm.run(PROGRAM, *words, environment=environment, output=output, timeout=280)
        assert status == 0, output.read_text()[-4000:]
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    return count


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("stage", COMMANDS)
def test_no_graph_is_new_after_the_first_step(counted: Counted, stage: str, option: str) -> None:
    found = counted(stage, OPTIONS[option])
    assert found["new_graphs"] == 0, "\n".join(found["causes"])
    assert found["warm_graphs"] > 10
    assert found["steps"] - found["warm_steps"] == 20
    assert found["evaluations"] >= 2
    assert len(found["widths"]) > 1 or stage == "ppo"


def test_roles_on_one_base_compile_no_graph_after_the_first_update(counted: Counted) -> None:
    """Policy, reference, value and reward: adapters of one base, whichever acts."""
    found = counted("ppo", f"--peft lora --bf16 True {SHARED}")
    assert found["new_graphs"] == 0, "\n".join(found["causes"])
    assert found["warm_graphs"] > 10
    assert found["steps"] - found["warm_steps"] == 20
    assert found["evaluations"] >= 2


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_shapes_that_vary_compile_graphs_all_along(counted: Counted, stage: str) -> None:
    """Else the counts above would show nothing."""
    found = counted(stage, "--dynamic --full_finetune --bf16 False")
    assert found["new_graphs"] > 20
