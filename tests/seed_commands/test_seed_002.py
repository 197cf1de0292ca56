"""Seed 002's commands run as written, to the end, and what they leave is plain transformers and peft."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import left
import pytest
import record
import seed_002
import seed_002_habana
import torch
from peft import PeftModel
from seed_002 import COLUMN_SETS, TOKEN, Pipeline, run_pipeline
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

pytestmark = pytest.mark.slow

#: Command → the stage of the pipeline that runs it
CUDA = {
    "002 SFT, CUDA": "sft",
    "002 merge of SFT": "merged_sft",
    "002 reward model, CUDA": "reward",
    "002 PPO, CUDA": "ppo",
}
HABANA = {
    "002 SFT, Habana": "sft",
    "002 merge of SFT": "merged_sft",
    "002 reward model, Habana, one card": "reward_single",
    "002 reward model, Habana": "reward",
    "002 PPO, Habana, one card": "ppo_single",
    "002 PPO, Habana": "ppo",
}
AS_WRITTEN = {command.name: command.text for command in (*seed_002.COMMANDS, *seed_002_habana.COMMANDS)}
#: flags of how many processes there are
PROCESSES = {"--nproc_per_node", "--num_processes", "--world_size"}
PPO_KEYS = {
    *("objective/kl", "objective/kl_coef", "objective/entropy", "objective/scores", "objective/rlhf_reward"),
    *("policy/approxkl", "policy/clipfrac", "policy/ratio", "policy/loss"),
    *(
        "value/loss",
        "value/clipfrac",
        "value/mean",
        "value/explained_variance",
        "returns/mean",
        "returns/std",
    ),
    *("response/length_mean", "response/eos_rate", "speed/tokens_per_second"),
    *("time/rollout", "time/score", "time/forward", "time/advantage", "time/optimise"),
}


@pytest.fixture(
    scope="module",
    params=[("chosen", "--multi_gpu"), ("chatgpt", "--cpu"), ("chosen", "habana")],
    ids=["cuda", "cuda-older-columns", "habana"],
)
def pipeline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, text_llama_dir: Path
) -> Pipeline:
    """Everything run once for each of the data set's column sets, both spellings of the PPO launcher, and on Gaudi."""
    columns, device = request.param
    root = tmp_path_factory.mktemp(f"seed_002_{device}")
    if device == "habana":
        return seed_002_habana.run_pipeline(root, text_llama_dir, COLUMN_SETS[columns])
    return run_pipeline(root, text_llama_dir, COLUMN_SETS[columns], device)


def test_each_stage_says_how_many_processes_it_runs_on(pipeline: Pipeline) -> None:
    for stage, processes in (("sft", 2), ("reward", 2), ("ppo", pipeline.ppo_processes)):
        assert f"{processes} process(es)" in pipeline.outputs[stage]
        environment = json.loads((getattr(pipeline, stage) / "environment.json").read_text())
        assert environment["processes"] == processes


def test_the_sft_adapter_loads_with_peft_onto_the_base(pipeline: Pipeline) -> None:
    base = AutoModelForCausalLM.from_pretrained(pipeline.base("Llama-2-7b-chat-hf"))
    assert_answers(PeftModel.from_pretrained(base, str(pipeline.sft)), pipeline.sft)


@pytest.mark.parametrize("stage", ["merged_sft", "merged_ppo"])
def test_merged_models_load_with_transformers_alone(pipeline: Pipeline, stage: str) -> None:
    directory = getattr(pipeline, stage)
    assert not (directory / "adapter_config.json").exists()
    assert_answers(AutoModelForCausalLM.from_pretrained(directory), directory)


def test_merging_changes_no_answer(pipeline: Pipeline) -> None:
    base = AutoModelForCausalLM.from_pretrained(pipeline.base("Llama-2-7b-chat-hf"))
    with_adapter = PeftModel.from_pretrained(base, str(pipeline.sft)).eval()
    merged = AutoModelForCausalLM.from_pretrained(pipeline.merged_sft).float().eval()
    ids = AutoTokenizer.from_pretrained(pipeline.sft)("Blue is a colour.", return_tensors="pt").input_ids
    expected, found = with_adapter(ids).logits, merged(ids).logits
    # merge_peft_adapter.py writes bf16 as the original did: 8 bits of mantissa
    assert (expected - found).norm() < 0.02 * expected.norm()


def test_the_reward_model_loads_with_peft_and_its_statistics_are_of_real_scores(pipeline: Pipeline) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(pipeline.base("Llama-2-7b-hf"), num_labels=1)
    model = PeftModel.from_pretrained(base, str(pipeline.reward)).eval()
    tokenizer = AutoTokenizer.from_pretrained(pipeline.reward)
    score = model(**inputs_of(tokenizer, "There are 5 apples.")).logits
    assert score.shape == (1, 1)
    assert math.isfinite(score.item())
    statistics = json.loads((pipeline.reward / "reward_statistics.json").read_text())
    assert math.isfinite(statistics["mean"])
    assert statistics["std"] > 0
    assert statistics["count"] > 1


def test_the_reward_adapter_brings_its_score_head(pipeline: Pipeline) -> None:
    """Two fresh heads differ; with the adapter's own head the scores agree."""
    scores = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(
            pipeline.base("Llama-2-7b-hf"), num_labels=1
        )
        model = PeftModel.from_pretrained(base, str(pipeline.reward)).eval()
        scores.append(model(input_ids=torch.tensor([[5, 6, 7]])).logits.item())
    assert scores[0] == scores[1]


def test_ppo_saves_its_policy_at_the_end_and_checkpoints_every_save_freq_updates(pipeline: Pipeline) -> None:
    base = AutoModelForCausalLM.from_pretrained(pipeline.merged_sft)
    assert_answers(PeftModel.from_pretrained(base, str(pipeline.ppo)), pipeline.ppo)
    # --save_freq=1: after each of the two updates, which are 4 epochs x 8 answers / 8 a step = 4 optimizer steps
    checkpoints = sorted(path.name for path in pipeline.ppo.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-4", "checkpoint-8"]
    for checkpoint in checkpoints:
        assert (pipeline.ppo / checkpoint / "adapter_model.safetensors").is_file()
        assert (pipeline.ppo / checkpoint / "value_head.safetensors").is_file()
    assert (pipeline.ppo / "value_head.safetensors").is_file()


def test_every_stage_saves_its_tokenizer(pipeline: Pipeline, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "How many apples? Show the sum."
    for stage in ("sft", "merged_sft", "reward", "ppo", "merged_ppo"):
        tokenizer = AutoTokenizer.from_pretrained(getattr(pipeline, stage))
        assert tokenizer(text).input_ids == tiny_tokenizer(text).input_ids
        assert tokenizer.eos_token_id == tiny_tokenizer.eos_token_id


def test_losses_are_finite_and_every_step_is_logged(pipeline: Pipeline) -> None:
    for stage in ("sft", "reward", "ppo"):
        steps = [row for row in pipeline.metrics(stage) if "loss" in row]
        assert steps
        for row in steps:
            assert math.isfinite(row["loss"])
            assert math.isfinite(row["grad_norm"])
            assert "nonfinite" not in row
    # three epochs of 23 pairs, 8 a step; on Gaudi, whose shapes are fixed, without the incomplete third
    steps_an_epoch = 2 if pipeline.on_gaudi else 3
    steps = [row["step"] for row in pipeline.metrics("reward") if "loss" in row]
    assert steps == list(range(1, 3 * steps_an_epoch + 1))


def test_ppo_logs_everything_that_is_plotted(pipeline: Pipeline) -> None:
    updates = [row for row in pipeline.metrics("ppo") if "objective/kl" in row]
    assert len(updates) == 2
    for row in updates:
        assert set(row) >= PPO_KEYS
        assert all(math.isfinite(row[name]) for name in PPO_KEYS)
    # the policy that learns is the one that wrote the answers: the first ratios are one
    assert updates[0]["policy/ratio"] == pytest.approx(1.0, abs=0.01)
    assert updates[0]["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert updates[-1]["ppo/episodes"] == 16 * pipeline.ppo_processes


def test_reward_modelling_reports_accuracy_and_margin(pipeline: Pipeline) -> None:
    rows = pipeline.metrics("reward")
    assert any({"accuracy", "margin", "chosen_mean", "rejected_mean"} <= set(row) for row in rows)
    assert any({"eval_accuracy", "eval_loss", "eval_margin"} <= set(row) for row in rows)


def test_the_access_token_is_written_nowhere(pipeline: Pipeline) -> None:
    for stage, output in pipeline.outputs.items():
        assert TOKEN not in output, stage
    files = [file for file in pipeline.root.rglob("*") if file.is_file()]
    records = [file for file in files if file.suffix == ".wandb"]
    if pipeline.on_gaudi:
        assert not records, "no Habana command asks for a tracker"
    else:
        assert len(records) == 1, "the tracker that --log_with names keeps one record of the run"
        assert b"--hf_access_token" in records[0].read_bytes(), "it holds the command line, as plain text"
    for file in files:
        assert TOKEN.encode() not in file.read_bytes(), file


def test_only_the_first_process_writes(pipeline: Pipeline) -> None:
    """Two writers would double the rows of the .jsonl files."""
    for stage in ("sft", "reward", "ppo"):
        directory = getattr(pipeline, stage)
        events = [json.loads(line)["event"] for line in (directory / "events.jsonl").read_text().splitlines()]
        assert events == ["started", "finished"]
        logged = [row["step"] for row in pipeline.metrics(stage) if "loss" in row]
        assert len(logged) == len(set(logged))
        assert not list(directory.rglob("tmp*"))
        assert pipeline.outputs[stage].count("rlhf_hw | device:") == 1


def test_the_habana_commands_train_on_the_gaudi_and_nowhere_else(pipeline: Pipeline) -> None:
    stages = ("sft", "reward_single", "reward", "ppo_single", "ppo")
    for stage in stages if pipeline.on_gaudi else ():
        assert "rlhf_hw | device: hpu (" in pipeline.outputs[stage]
        if not stage.startswith("ppo"):  # the others say --use_lazy_mode
            assert "lazy mode (as asked)" in pipeline.outputs[stage]
    for stage in ("sft", "reward", "ppo"):
        environment = json.loads((getattr(pipeline, stage) / "environment.json").read_text())
        assert environment["backend"]["backend"] == ("hpu" if pipeline.on_gaudi else "cpu")
        assert ("mpirun" in pipeline.outputs[stage]) == pipeline.on_gaudi


def test_a_single_card_trains_as_well(pipeline: Pipeline) -> None:
    for stage in ("reward", "ppo") if pipeline.on_gaudi else ():
        directory = pipeline.root / "single" / stage
        assert (directory / "adapter_model.safetensors").is_file()
        assert json.loads((directory / "environment.json").read_text())["processes"] == 1
        assert "1 process(es)" in pipeline.outputs[f"{stage}_single"]


def test_what_ran_and_what_it_left_is_in_the_record(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the older columns nothing is kept: they are another data set for the same commands."""
    device = "hpu" if pipeline.on_gaudi else "cpu"
    monkeypatch.chdir(pipeline.root / "rlhf")  # where the bases of the adapters are found
    ran = {}
    for name, stage in (HABANA if pipeline.on_gaudi else CUDA).items():
        alone = stage.removesuffix("_single")
        directory = pipeline.root / "single" / alone if stage != alone else getattr(pipeline, stage)
        if stage.startswith("merged"):
            processes, found = 1, left.by_a_merge(directory)
        else:
            processes = json.loads((directory / "environment.json").read_text())["processes"]
            found = left.by_a_stage(directory, alone, device)
        command = pipeline.commands[stage]
        changed = changed_flags(AS_WRITTEN[name], command)
        ran[name] = {
            "processes": processes,
            "by": launcher_of(command),
            "left": found,
            "changed": changed,
        }
    if pipeline.ppo_processes == 2:
        record.hold(device, ran)


def launcher_of(command: str) -> str:
    """What starts the processes of a command."""
    words = command.split()
    if words[0] in ("torchrun", "accelerate"):
        return words[0]
    return (
        "gaudi_spawn.py (mpirun)" if words[1].endswith("gaudi_spawn.py") and "--use_mpi" in words else "plain"
    )


def changed_flags(written: str, ran: str) -> list[str]:
    """Flags with their values that only one of two commands has, but for the number of processes."""
    before, now = flags_of(written), flags_of(ran)
    given = [f"{flag} {value}".strip() for flag, value in now.items() if before.get(flag) != value]
    return given + [f"without {flag}" for flag in before if flag not in now]


def flags_of(command: str) -> dict[str, str]:
    """Flag → value, empty where it has none."""
    words = [part for word in shlex.split(command.replace("\\\n", " ")) for part in word.split("=", 1)]
    values = [*words[1:], "--"]
    found = {}
    for flag, value in zip(words, values, strict=True):
        if flag.startswith("--") and flag not in PROCESSES:
            found[flag] = "" if value.startswith("--") else value
    return found


def assert_answers(model: torch.nn.Module, directory: Path) -> None:
    """The model gives finite next-token scores, for every token of the tokenizer beside it."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    logits = model.eval()(**inputs_of(tokenizer, "How many are 2 apples and 3 apples?")).logits
    assert logits.shape[-1] >= len(tokenizer)
    assert torch.isfinite(logits).all()


def inputs_of(tokenizer: PreTrainedTokenizerFast, text: str) -> dict[str, torch.Tensor]:
    """The model's inputs for one text."""
    encoded = tokenizer(text, return_tensors="pt")
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
