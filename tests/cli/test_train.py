"""The pipeline: three steps in order, each into its folder; skipped when complete, continued after a failure; the table.

The steps run in this process here, through their ordinary mains: that they are started as processes of their own is the
launchers' business, and tested there.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState
from run_results import metrics

from launchers import LaunchRequest
from rlhf_hw.cli import train as train_module

Run = Callable[..., Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[LaunchRequest]:
    """Every step that was started, run in this process."""
    requests: list[LaunchRequest] = []

    def start(request: LaunchRequest, *, dry_run: bool) -> int:
        assert not dry_run
        requests.append(request)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        logging.getLogger("rlhf_hw").handlers.clear()
        assert request.module is not None
        return importlib.import_module(request.module).main(list(request.script_args))

    monkeypatch.setattr(train_module, "start", start)
    return requests


@pytest.fixture
def pipeline(run: Run, text_llama_dir: Path, pairs_file: Path) -> Run:
    """`rlhf-hw train` on twelve pairs, a few steps each."""

    def train(*more: object) -> Any:
        return run(
            *("train", "--actor-model", text_llama_dir, "--reward-model", text_llama_dir, "--device", "cpu"),
            *(
                "--train-file",
                pairs_file,
                "--validation-file",
                pairs_file,
                "--data-split",
                "none",
                "--seed",
                3,
            ),
            *(
                "--all.bf16",
                "False",
                "--sft.max_steps",
                2,
                "--rm.max_steps",
                2,
                "--ppo.steps",
                8,
                "--ppo.batch_size",
                4,
            ),
            *("--ppo.mini_batch_size", 4, "--ppo.output_max_length", 6, "--ppo.warmup_steps", 0),
            *more,
        )

    return train


def commands(started: list[LaunchRequest]) -> list[str]:
    return [str(request.module).rpartition(".")[2] for request in started]


def test_the_three_steps_build_on_each_other_and_end_in_the_table(
    pipeline: Run, started: list[LaunchRequest], text_llama_dir: Path
) -> None:
    outcome = pipeline("--price-per-hour", 3600)
    assert outcome.status == 0, outcome.err
    name = text_llama_dir.name
    sft, reward, ppo = (Path("output") / f / name for f in ("actor-models", "reward-models", "step3-models"))
    assert commands(started) == ["sft", "reward", "ppo"]
    words = list(started[2].script_args)
    for flag, folder in (("--model_name", sft), ("--reward_model_name", reward)):
        assert words[words.index(flag) + 1] == str(folder)

    found = json.loads(Path("output/results.json").read_text())
    last = {
        "perplexity": [row["eval_perplexity"] for row in metrics(sft) if "eval_perplexity" in row][-1],
        "reward_average_score": [
            row["eval_chosen_mean"] for row in metrics(reward) if "eval_chosen_mean" in row
        ][-1],
        "reward_accuracy": [row["eval_accuracy"] for row in metrics(reward) if "eval_accuracy" in row][-1],
        "average_reward": [row["objective/scores"] for row in metrics(ppo) if "objective/scores" in row][-1],
    }
    assert {name: found[name] for name in last} == last
    assert found["cost"] == pytest.approx(sum(found["seconds"].values()))  # at a price of one a second
    table = Path("output/results.md").read_text()
    assert table.strip() in outcome.out
    for name in last.values():
        assert f"{name:.5f}" in table

    before = started.copy()
    again = pipeline()
    assert again.status == 0, again.err
    assert started == before
    assert again.err.count("is complete in") == 3
    other = pipeline("--sft.learning_rate", 0.5, "--redo", 2)
    assert other.status == 0, other.err
    assert "with other settings than now: skipped (--redo 1" in other.err
    assert commands(started[3:]) == ["reward", "ppo"]  # the policy learnt from the reward model that is gone


def test_a_step_that_failed_is_tried_again_and_those_before_it_are_kept(
    pipeline: Run, started: list[LaunchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = train_module.start

    def reward_breaks_down(request: LaunchRequest, *, dry_run: bool) -> int:
        if str(request.module).endswith("reward"):
            folder = Path(request.script_args[list(request.script_args).index("--output_dir") + 1])
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("")
            (folder / "status.json").write_text('{"state": "failed"}')
            (folder / "rlhf_hw_files.json").write_text(
                json.dumps(
                    {"written_by": "rlhf_hw", "files": ["metrics.jsonl", "status.json", "rlhf_hw_files.json"]}
                )
            )
            return 7
        return start(request, dry_run=dry_run)

    monkeypatch.setattr(train_module, "start", reward_breaks_down)
    outcome = pipeline()
    assert outcome.status == 7
    assert "step 2 (reward model) failed with status 7" in outcome.err
    monkeypatch.setattr(train_module, "start", start)
    outcome = pipeline("--step", 1, 2)
    assert outcome.status == 0, outcome.err
    assert commands(started) == ["sft", "reward"]
    assert started[1].script_args[-1] == "--overwrite_output_dir"
    assert "| -" in outcome.out  # step 3 has no figures yet
    resumable = Path("output/actor-models").iterdir().__next__()
    (resumable / "checkpoint-2").mkdir()
    (resumable / "checkpoint-2" / "trainer_state.json").write_text("{}")
    (resumable / "status.json").write_text('{"state": "interrupted"}')
    monkeypatch.setattr(train_module, "start", lambda request, dry_run: started.append(request) or 9)
    assert pipeline().status == 9
    assert started[2].script_args[-1] == "--resume_from_checkpoint"


def test_a_dry_run_prints_the_three_commands_and_runs_nothing(pipeline: Run, workplace: Path) -> None:
    outcome = pipeline("--dry-run", "--actor-zero-stage", "0")
    assert outcome.status == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if "-m rlhf_hw.cli." in line]
    assert [line.split("-m rlhf_hw.cli.")[1].split()[0] for line in lines] == ["sft", "reward", "ppo"]
    assert "--max_steps 2" in lines[0]
    assert "--max_steps" not in lines[2]
    assert not list(workplace.iterdir())


def test_a_file_of_settings_is_the_command_line(
    run: Run, workplace: Path, text_llama_dir: Path, pairs_file: Path
) -> None:
    (workplace / "run.yaml").write_text(
        f"actor_model: {text_llama_dir}\nreward_model: {text_llama_dir}\ntrain_file: {pairs_file}\ndevice: cpu\ndry_run: true\n"
        "sft:\n  learning_rate: 0.25\n  bf16: false\nrm:\n  lora_target_modules: [q_proj, v_proj]\nall:\n  logging_steps: 7\n"
    )
    outcome = run("train", "--config", "run.yaml", "--sft.learning_rate", 0.5)
    assert outcome.status == 0, outcome.err
    sft, reward, ppo = (line for line in outcome.out.splitlines() if "-m rlhf_hw.cli." in line)
    assert "--learning_rate=0.25" in sft
    assert sft.endswith("--learning_rate 0.5")  # the command line comes later, and wins
    assert "--lora_target_modules q_proj v_proj" in reward
    assert all("--logging_steps=7" in line for line in (sft, reward, ppo))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ppo.stepz", 8], "rlhf-hw ppo: error: --stepz: unknown flag"),
        (["--sft.learning_rate", "fast"], "rlhf-hw sft: error: --learning_rate: got 'fast'"),
        (["--step", 3], "step 3 needs the model of step 1"),
        (["--step", 4], "--step: invalid choice: 4"),
        (["--actor-model", "./nowhere"], "--actor-model: there is no directory ./nowhere"),
        (["--deployment-type", "multi_node"], "--hostfile: --deployment-type multi_node needs the machines"),
        (["--machine-rank", 0], "--hostfile, --machine-rank: are for --deployment-type multi_node"),
        (["--dataset-name", "x"], "--dataset_name and --train_file: both were given"),
        (["--price-per-hour", -1], "--price-per-hour: got -1.0"),
        (["--config", "no.yaml"], "--config: cannot read no.yaml"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    more: list[object], said: str, pipeline: Run, started: list[LaunchRequest], workplace: Path
) -> None:
    outcome = pipeline(*more)
    assert outcome.status == 2
    assert len([line for line in outcome.err.splitlines() if "error:" in line]) == 1
    assert said in outcome.err
    assert not started
    assert not list(workplace.iterdir())
