"""LoRA on 4-bit weights, on a CPU (`make test-quantized`: bitsandbytes is no part of the environments)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import metrics
from safetensors.torch import load_file

from backends.cpu import CPUBackend
from rlhf_hw.cli import ppo_models

bnb = pytest.importorskip("bitsandbytes")

Train = Callable[..., Path]
Run = Callable[..., Any]
FLAT = "def score(prompts, responses):\n    return [len(set(r)) / 8 for r in responses]\n"
WEIGHTS = ("adapter_model.safetensors", "critic/adapter_model.safetensors")


@pytest.fixture
def stages(trained: Train, sft_flags: list[object], reward_flags: list[object]) -> tuple[Path, Path]:
    """Supervised fine-tuning and a reward model, each with LoRA on the 4-bit base."""
    Path("flat.py").write_text(FLAT)
    sft = trained("sft", *sft_flags, "--qlora", output="sft")
    return sft, trained("reward", *reward_flags, "--qlora", output="reward")


def quantized(model: Any) -> dict[str, torch.Tensor]:
    """The 4-bit weights by name, with their scales."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            found[name] = module.weight.data.clone()
            found[f"{name} scales"] = module.weight.quant_state.absmax.clone()
    return found


def progress(directory: str) -> list[dict[str, float]]:
    """What was found in each update, without what it took."""
    parts = ("objective/", "policy/", "value/", "returns/", "advantages/", "response/", "loss", "grad_norm")
    rows = [row for row in metrics(Path(directory)) if "objective/kl" in row]
    return [{name: row[name] for name in row if name.startswith(parts)} for row in rows]


def test_looking_at_a_layer_changes_nothing_of_it() -> None:
    """Not its weights, and not that gradients flow through it."""
    CPUBackend().quantization_config(4, True, "nf4", CPUBackend().precision(False, None))
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(torch.randn(32, 64), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu").eval()
    inputs, before = torch.randn(3, 64), quantized(layer)
    with torch.no_grad():
        seen = layer(inputs)
    assert [torch.equal(before[name], now) for name, now in quantized(layer).items()] == [True, True]
    inputs.requires_grad_()
    trained = layer.train()(inputs)
    assert torch.equal(trained, seen)
    trained.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_answers_alike_in_evaluation_and_in_training(bits: int) -> None:
    """PPO's ratio compares the two. And each row by itself: another row's large inputs do not change it."""
    CPUBackend().quantization_config(bits, True, "nf4", CPUBackend().precision(False, None))
    torch.manual_seed(0)
    weights, inputs = torch.randn(32, 64), torch.randn(3, 64)
    inputs[0, 5] = 50.0
    if bits == 4:
        layer = bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32)
        layer.weight = bnb.nn.Params4bit(weights, requires_grad=False, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(weights, requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    with torch.no_grad():
        seen = layer(inputs)
        assert torch.allclose(layer(inputs[1:]), seen[1:], atol=1e-5)
    assert torch.equal(layer.train()(inputs), seen)
    exact = inputs @ weights.T
    assert (seen - exact).norm() < 0.15 * exact.norm()


def test_one_4_bit_base_gives_the_numbers_of_one_for_each_role(
    stages: tuple[Path, Path], run: Run, ppo_flags: list[object]
) -> None:
    """The first KL is zero in both: a reference of its own is held in 4 bits too."""
    sft, reward = stages
    flags = [*ppo_flags, "--qlora", "--model_name", sft, "--critic_model_name", reward]
    flags += ["--value_model", "separate", "--reward_function", "flat:score"]
    together = run("ppo", *flags, "--share_backbone", "true", "--output_dir", "together")
    assert together.status == 0, together.err
    assert "base weights: one copy a process; policy, reference, value share one" in together.err
    apart = run("ppo", *flags, "--share_backbone", "false", "--output_dir", "apart")
    assert apart.status == 0, apart.err
    assert "base weights: 3 copies a process" in apart.err
    found, expected = progress("together"), progress("apart")
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    assert found[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert expected[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(found[1]["objective/kl"]) > 1e-4


def test_four_roles_on_4_bits_resume_to_the_bit_and_leave_the_base_as_it_was(
    stages: tuple[Path, Path], run: Run, ppo_flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sft, reward = stages
    held: list[tuple[Any, dict[str, torch.Tensor]]] = []
    load = ppo_models.load_policy

    def kept(*args: Any) -> Any:
        model = load(*args)
        held.append((model, quantized(model)))
        return model

    monkeypatch.setattr(ppo_models, "load_policy", kept)
    flags = [*ppo_flags, "--qlora", "--model_name", sft, "--reward_model_name", reward]
    flags += ["--init_value_with_reward", "--share_backbone", "true", "--save_freq", 1]
    whole = run("ppo", *flags, "--output_dir", "whole")
    assert whole.status == 0, whole.err
    assert "policy, reference, value, reward share one" in whole.err
    ((model, before),) = held
    assert len(before) >= 2 * 14
    after = quantized(model)
    assert all(torch.equal(before[name.replace(".base_layer", "")], now) for name, now in after.items())
    first = min(Path("whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    resumed = run("ppo", *flags, "--resume_from_checkpoint", first, "--output_dir", "resumed")
    assert resumed.status == 0, resumed.err
    for file in WEIGHTS:
        expected, found = load_file(f"whole/{file}"), load_file(f"resumed/{file}")
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
