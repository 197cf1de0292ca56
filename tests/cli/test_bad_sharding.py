"""Flags about DeepSpeed and FSDP that cannot be followed end in one line, exit status 2, and a disk as it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_hw.compat.torch_extensions import prepare_extensions

OUT = ("--output_dir", "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--zero_stage", "2"], "--zero_stage: acts with --deepspeed only"),
        (["--offload"], "--offload: acts with --deepspeed only"),
        (["--deepspeed", "--offload"], "--offload: --zero_stage 0 shares nothing"),
        (["--deepspeed", "--fsdp"], "--fsdp and --deepspeed: both were given"),
        (["--deepspeed", "./nowhere.json"], "--deepspeed: there is no file ./nowhere.json"),
        (
            ["--deepspeed", "{}", "--zero_stage", "2"],
            "--zero_stage: the configuration that --deepspeed names decides",
        ),
        (
            ["--deepspeed", "--zero_stage", "3", "--peft", "prompt"],
            "--zero_stage 3: --peft prompt reaches into",
        ),
        (
            ["--deepspeed", "--zero_stage", "3", "--qlora"],
            "--zero_stage 3: quantized weights cannot be sharded",
        ),
        (
            ["--deepspeed", '{"gradient_clipping": 0.5}'],
            "--deepspeed: the configuration has gradient_clipping=0.5, the flags max_grad_norm=1.0",
        ),
        (["--deepspeed", "--do_eval"], "--deepspeed: shards what training holds, and nothing is trained"),
        (["--deepspeed", '{"fp16": {"enabled": true}}'], "--deepspeed: fp16 is not supported with it"),
        (
            ["--deepspeed", '{"bf16": {"enabled": true}}', "--bf16", "False"],
            "sets bf16.enabled to True; give --bf16 as well",
        ),
        (
            ["--deepspeed", "--device", "hpu", "--use_hpu_graphs_for_training"],
            "--use_hpu_graphs_for_training: DeepSpeed",
        ),
        (
            ["--deepspeed", '{"zero_optimization": 3}'],
            "--deepspeed: zero_optimization is 3, expected an object such as",
        ),
        (
            ["--deepspeed", '{"zero_optimization": {"stage": "two"}}'],
            "--deepspeed: zero_optimization.stage is 'two', expected 0, 1, 2 or 3",
        ),
        (["--deepspeed", '{"bf16": true}'], "--deepspeed: bf16 is True, expected an object such as"),
        (["--deepspeed", "latin.json"], "--deepspeed latin.json: it is not UTF-8 text; save it as such"),
        (["--fsdp", "--fsdp_config", "latin.json"], "--fsdp_config latin.json: it is not UTF-8 text"),
        (
            ["--fsdp", "--fsdp_config", '{"transformer_layer_cls_to_wrap": 3}'],
            "--fsdp_config transformer_layer_cls_to_wrap: got 3, expected the name",
        ),
        (
            ["--fsdp", "--fsdp_config", '{"min_num_params": "\u00b2"}'],
            "--fsdp_config min_num_params: got '\u00b2', expected a number",
        ),
        (["--fsdp", "full_shrad"], "--fsdp: there is no 'full_shrad'; give the bare flag, or full_shard"),
        (["--fsdp", "full_shard shard_grad_op"], "--fsdp: full_shard and shard_grad_op were both given"),
        (["--fsdp", "full_shard offload"], "--fsdp: offload is not supported with FSDP"),
        (["--fsdp", "hybrid_shard"], "--fsdp: hybrid_shard (sharing within a machine only) is not supported"),
        (["--fsdp", "no_shard"], "--fsdp: no_shard shares nothing"),
        (["--fsdp", "--fsdp_config", "./nowhere.json"], "--fsdp_config: there is no file ./nowhere.json"),
        (["--fsdp", "--fsdp_config", '{"layers": 1}'], "--fsdp_config: there is no setting 'layers'"),
        (
            ["--fsdp", "--fsdp_min_num_params", "9", "--fsdp_transformer_layer_cls_to_wrap", "L"],
            "--fsdp_config: transformer_layer_cls_to_wrap and min_num_params were both given",
        ),
        (
            ["--fsdp", "--fsdp_transformer_layer_cls_to_wrap", "NotALayer", "--dry_run"],
            "the model has no NotALayer; its layers are LlamaDecoderLayer",
        ),
        (["--fsdp", "--peft", "prompt"], "--fsdp: --peft prompt reaches into"),
        (["--fsdp", "--optim", "adafactor"], "--optim adafactor: it was never tried on shares of weights"),
        (["--fsdp", "--fp16"], "--fsdp: fp16 is not supported with it"),
        (["--fsdp", "--do_eval"], "--fsdp: shards what training holds, and nothing is trained"),
        (
            ["--fsdp", "--device", "hpu", "--use_hpu_graphs_for_training"],
            "--use_hpu_graphs_for_training: FSDP",
        ),
    ],
)
@pytest.mark.usefixtures("deepspeed")
def test_sharding_that_cannot_be(
    flags: list[str],
    message: str,
    refused: Callable[..., str],
    language_model_flags: list[object],
    workplace: Path,
) -> None:
    (workplace / "latin.json").write_bytes('{"näme": 1}'.encode("latin-1"))
    assert message in refused("sft", *language_model_flags, *OUT, *flags)


@pytest.mark.usefixtures("deepspeed")
def test_a_lock_that_a_killed_run_left_is_named(
    refused: Callable[..., str],
    language_model_flags: list[object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    prepare_extensions()  # as old as that, somebody is compiling
    os.utime(lock, (0, time.time() - 3600))
    line = refused("sft", *language_model_flags, *OUT, "--deepspeed")
    assert f"--deepspeed: {lock} is 60 minutes old" in line
    assert lock.exists()


def test_deepspeed_that_is_not_there(
    refused: Callable[..., str], language_model_flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: None)
    line = refused("sft", *language_model_flags, *OUT, "--deepspeed")
    assert "--deepspeed: DeepSpeed is not installed" in line
    assert "requirements-deepspeed.txt" in line


def test_what_accelerate_would_shard_behind_a_stage(
    refused: Callable[..., str], language_model_flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "give --deepspeed" in refused("sft", *language_model_flags, *OUT)
