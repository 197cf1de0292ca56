"""What processes and roles share, as an estimate has it: closed forms, and what a run decides."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import tiny_model

from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.errors import UserError
from rlhf_hw.estimate.roles import Conditions
from rlhf_hw.estimate.stages import Estimate, estimate

SIZES = "hidden=64,intermediate=128,layers=5,heads=4,kv_heads=2,vocab=320"
#: numbers in a layer, and in the embeddings, the head and the last norm, which lie in none
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
ROOT = 2 * 320 * 64 + 64


def conditions(**changes: Any) -> Conditions:
    known = {"card": "a card", "memory": 1.0, "processes": 4, "autocast": "no", "attention": "sdpa"}
    return Conditions(**{**known, "frozen_dtype": torch.float32, **changes})


def terms(found: Estimate, phase: str) -> dict[str, int]:
    return next(one.terms for one in found.phases if one.name == phase)


def sft(flags: str, **changes: Any) -> Estimate:
    needed = "--model_name_or_path x --output_dir x --dataset_name x --max_seq_length 48 --full_finetune"
    return estimate(parse_sft(f"{needed} {flags}".split()), conditions(**changes), SIZES)


def ppo(flags: str, **changes: Any) -> Estimate:
    needed = "--max_prompt_length 24 --output_max_length 16 --reward_model_name"
    reward = "" if "--reward_model_name" in flags else "x"
    needed = needed if reward else needed.removesuffix("--reward_model_name")
    sizes = None if "--model_name_or_path" in flags else SIZES
    model = "" if sizes is None else "--model_name_or_path x"
    return estimate(parse_ppo(f"{needed} {reward} {model} {flags}".split()), conditions(**changes), sizes)


def test_fsdp_shares_all_and_gathers_a_layer_and_the_next() -> None:
    found, count = sft("--fsdp"), 5 * LAYER + ROOT
    step, update = terms(found, "optimizer step"), terms(found, "update")
    assert (step["policy weights"], step["gradients"], step["optimizer state"]) == (count, count, 2 * count)
    assert update["gathered weights"] == 4 * (ROOT + 2 * LAYER)
    kept = terms(sft("--fsdp shard_grad_op"), "update")
    assert kept["gathered weights"] == 4 * (count + LAYER)
    assert "buckets" not in update


@pytest.mark.parametrize("sharing", ["--fsdp", "--deepspeed --zero_stage 3"])
def test_rollouts_hold_whole_weights_beside_the_share(sharing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: True)
    found = ppo(f"--full_finetune {sharing}")
    whole = found.roles["policy"].bytes
    rollout = terms(found, "rollout")
    assert rollout["gathered weights"] == whole
    assert rollout["policy weights"] == -(-whole // 4)
    assert rollout["reference weights"] == whole  # of its own, on every process


def test_a_card_holds_deepspeeds_whole_bucket_and_a_cpu_what_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: True)
    flags = "--deepspeed --zero_stage 2"
    assert terms(sft(flags), "update")["buckets"] == 4 * 500_000_000
    # rows so short that the backward pass takes most near its end, when all gradients but the embeddings' are written
    short = "--max_seq_length 2 --per_device_train_batch_size 1"
    written = terms(sft(f"{flags} {short}", reserves=False), "update")
    assert written["buckets"] == 4 * (5 * LAYER + ROOT - 320 * 64)


@pytest.mark.parametrize("said", ['"lots"', "null", "1e999"])
def test_a_size_that_is_no_number_is_named(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: True)
    file = tmp_path / "zero.json"
    file.write_text(f'{{"zero_optimization": {{"stage": 2, "reduce_bucket_size": {said}}}}}')
    with pytest.raises(UserError, match=r"--deepspeed: zero_optimization\.reduce_bucket_size is "):
        sft(f"--deepspeed {file}")


def test_roles_share_a_base_where_the_run_lets_them(tiny_llama_dir: str, tmp_path: Path) -> None:
    """The reward model is an adapter on the policy's base; another configuration of the policy keeps it apart."""
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    peft.get_peft_model(tiny_model(labels=1), config).save_pretrained(tmp_path)
    adapter = tmp_path / "adapter_config.json"
    said = json.loads(adapter.read_text())
    adapter.write_text(json.dumps({**said, "base_model_name_or_path": tiny_llama_dir}))
    flags = f"--model_name_or_path {tiny_llama_dir} --reward_model_name {tmp_path} --peft lora"
    together, apart = ppo(flags), ppo(f"{flags} --config_name {tiny_llama_dir}")
    assert (
        together.roles["reward"].all_parameters == 2 * 2 * (32 + 32) + 32
    )  # layers, rank, its matrices; head
    assert apart.roles["reward"].all_parameters > 2_000
