"""Liger's kernels go into the decoders of every stage, its losses into none. (Liger itself needs a GPU: not run here.)"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_models import tiny_model
from tiny_runs import reward_trainer, sft_trainer, with_lora

from backends.base import BackendError
from backends.cpu import CPUBackend
from backends.cuda import CUDABackend
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.cli.training_arguments import make_training_arguments
from rlhf_hw.errors import UserError

FLAGS = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--device", "cpu"]


def of_a_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    """The signature of Liger's function of this purpose."""
    raise AssertionError("Liger calls it")


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """A library of Liger's name and functions, which lists what it is asked to change."""
    asked: list[tuple[Any, dict[str, Any]]] = []
    package, transformers, patch = (
        ModuleType(name)
        for name in (
            "liger_kernel",
            "liger_kernel.transformers",
            "liger_kernel.transformers.monkey_patch",
        )
    )
    transformers._apply_liger_kernel_to_instance = lambda model, **kwargs: asked.append((model, kwargs))  # type: ignore[attr-defined]
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": of_a_llama}  # type: ignore[attr-defined]
    for module in (package, transformers, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_transformers_model_is_patched_without_a_loss(
    tmp_path: Path, liger: list[tuple[Any, dict[str, Any]]], stage: str, lora: bool
) -> None:
    inner = tiny_model(labels=1 if stage == "reward" else None)
    model = with_lora(inner, "SEQ_CLS" if stage == "reward" else "CAUSAL_LM") if lora else inner
    make = sft_trainer if stage == "sft" else reward_trainer
    options = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}, "max_steps": 1}
    make(tmp_path, model, **options).train()
    ((patched, kwargs),) = liger
    assert patched is inner
    assert kwargs == {"rope": False, "fused_linear_cross_entropy": False, "cross_entropy": False}


def test_a_model_without_kernels_is_refused(tmp_path: Path, liger: Any) -> None:
    with pytest.raises(UserError, match="--use_liger_kernel: Liger has no kernels for a gpt2 model"):
        sft_trainer(tmp_path, tiny_model("gpt2"), use_liger_kernel=True)


def test_a_kernel_that_there_is_not_is_refused(tmp_path: Path, liger: Any) -> None:
    with pytest.raises(UserError, match="no ropes for a llama model; there are rms_norm, rope, swiglu"):
        sft_trainer(tmp_path, tiny_model(), use_liger_kernel=True, liger_kernel_config={"ropes": False})
    assert liger == []


def test_backends_without_such_kernels_refuse_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BackendError, match="--use_liger_kernel: Liger's kernels need an NVIDIA GPU, not the cpu backend"
    ):
        make_training_arguments(parse_sft([*FLAGS, "--use_liger_kernel"]), CPUBackend(), {})
    monkeypatch.setattr("backends.cuda.find_spec", lambda name: None)
    assert "pip install 'rlhf-hw[liger]'" in CUDABackend().refused_training_arguments()["use_liger_kernel"]
    monkeypatch.setattr("backends.cuda.find_spec", lambda name: object())
    assert CUDABackend().refused_training_arguments() == {}


def test_a_fused_loss_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPUBackend, "refused_training_arguments", lambda self: {})
    config = '{"fused_linear_cross_entropy": true}'
    run = parse_sft([*FLAGS, "--use_liger_kernel", "--liger_kernel_config", config])
    with pytest.raises(
        UserError, match="--liger_kernel_config: fused_linear_cross_entropy works out the loss inside"
    ):
        make_training_arguments(run, CPUBackend(), {})
