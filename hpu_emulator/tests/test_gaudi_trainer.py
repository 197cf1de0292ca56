"""Unmodified optimum-habana trains on the emulated device, and gets what it gets on the CPU."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest

MODELS = ("llama", "gpt2", "opt", "qwen2")
LAZY = {"use_habana": True, "use_lazy_mode": True}
EAGER = {"use_habana": True, "use_lazy_mode": False}
CPU = {"use_cpu": True, "use_lazy_mode": False}
STEPS = 4


def request(model: str = "llama", *, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"task": "train", "model": model, "arguments": {"max_steps": STEPS, **arguments}, **more}


@pytest.mark.slow
def test_each_model_gets_the_same_losses_and_weights_lazy_eager_and_on_the_cpu(run_gaudi):
    def requests(arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [request(model, arguments=arguments, weights=True, evaluate=True) for model in MODELS]

    lazy = run_gaudi(requests(LAZY), PT_HPU_LAZY_MODE="1")
    eager = run_gaudi(requests(EAGER), PT_HPU_LAZY_MODE="0")
    cpu = run_gaudi(requests(CPU))
    for model, on_lazy, on_eager, on_cpu in zip(MODELS, lazy, eager, cpu, strict=True):
        assert (on_lazy.pop("device"), on_eager.pop("device"), on_cpu.pop("device")) == (
            "hpu:0",
            "hpu:0",
            "cpu",
        )
        assert len(on_lazy["losses"]) == STEPS
        assert on_lazy == on_eager, model
        assert on_lazy == on_cpu, model


@pytest.mark.slow
def test_a_run_resumed_from_its_checkpoint_equals_the_uninterrupted_one(run_gaudi):
    whole = request(arguments={**LAZY, "output_dir": "whole"}, weights=True)
    saving = {**LAZY, "output_dir": "parts", "save_strategy": "steps", "save_steps": 2}
    first = request(arguments={**saving, "max_steps": 2})
    second = request(arguments=saving, resume="parts/checkpoint-2", weights=True)
    uninterrupted, _, resumed = run_gaudi([whole, first, second])
    assert resumed == uninterrupted


@pytest.mark.slow
def test_the_ways_to_train_that_optimum_habana_offers(run_gaudi):
    """Each of them is a feature of the plugin: fused attention, optimizer and clipping, HPU graphs, pipelining."""
    variants = {
        "plain": request(arguments=LAZY, evaluate=True),
        "hpu graphs": request(
            arguments={**LAZY, "use_hpu_graphs_for_training": True, "use_hpu_graphs_for_inference": True},
            evaluate=True,
        ),
        "fused attention": request(
            arguments={**LAZY, "attn_implementation": "gaudi_fused_sdpa"},
            model_keywords={"attn_implementation": "gaudi_fused_sdpa"},
            evaluate=True,
        ),
        "pipelined": request(arguments={**LAZY, "pipelining_fwd_bwd": True}, evaluate=True),
        "workers": request(
            arguments={**LAZY, "dataloader_num_workers": 1, "non_blocking_data_copy": True}, evaluate=True
        ),
        "bf16": request(arguments={**LAZY, "bf16": True}, evaluate=True),
        "fused optimizer": request(
            arguments=LAZY, gaudi_config={"use_fused_adam": True, "use_fused_clip_norm": True}, evaluate=True
        ),
        "lora": request(arguments=LAZY, lora=["q_proj", "v_proj"], evaluate=True),
    }
    results = dict(zip(variants, run_gaudi(list(variants.values())), strict=True))
    plain = results["plain"]
    for exact in ("hpu graphs", "pipelined", "workers"):
        assert results[exact] == plain, exact
    assert results["fused attention"]["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-5)
    assert results["bf16"]["eval_loss"] == pytest.approx(plain["eval_loss"], abs=0.03)
    assert results["bf16"]["losses"] != plain["losses"]
    assert results["fused optimizer"]["eval_loss"] == pytest.approx(plain["eval_loss"], abs=0.03)
    assert results["lora"]["losses"][0] == plain["losses"][0]  # an adapter starts as the identity
    assert math.isfinite(results["lora"]["eval_loss"])


@pytest.mark.slow
def test_torch_compile_trains_to_the_same_losses(run_gaudi):
    compiled = {**EAGER, "torch_compile": True, "torch_compile_backend": "hpu_backend"}
    first, second = run_gaudi([request(arguments=EAGER), request(arguments=compiled)], PT_HPU_LAZY_MODE="0")
    assert second["losses"] == pytest.approx(first["losses"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_two_processes_train_as_one_with_twice_the_batch(run_gaudi, launcher):
    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("needs Open MPI's mpirun")
    one = run_gaudi(request(arguments={**LAZY, "per_device_train_batch_size": 8}, evaluate=True))
    two = run_gaudi(request(arguments=LAZY, evaluate=True), processes=2, launcher=launcher)
    assert [(answer["rank"], answer["device"][:3]) for answer in two] == [(0, "hpu"), (1, "hpu")]
    assert two[0]["eval_loss"] == two[1]["eval_loss"]
    assert two[0]["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-4)
