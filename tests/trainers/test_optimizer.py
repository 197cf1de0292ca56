"""The optimizer that a backend names is AdamW in one pass over the weights; the user's own comes first."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import sft_trainer, weights

from backends.cpu import CPUBackend
from backends.cuda import CUDABackend
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.cli.training_arguments import make_training_arguments

FLAGS = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--device", "cpu"]


def test_one_pass_over_the_weights_steps_as_a_loop_does(tmp_path: Path) -> None:
    found = []
    for name in ("adamw_torch", CPUBackend().training_argument_defaults()["optim"]):
        options = {"optim": name, "weight_decay": 0.1, "learning_rate": 1e-3, "max_steps": 6}
        trainer = sft_trainer(tmp_path, tiny_model(), **options)
        trainer.train()
        found.append(weights(trainer.model))
        fused = bool(trainer.optimizer.optimizer.defaults["fused"])
        assert fused is name.endswith("fused")
    start = weights(tiny_model())
    for name, tensor in found[0].items():
        moved, apart = (tensor - start[name]).abs().mean(), (found[1][name] - tensor).abs().mean()
        assert apart <= 1e-3 * moved, name


@pytest.mark.parametrize(
    ("flags", "optimizer"),
    [
        ([], "adamw_torch_fused"),
        (["--optim", "adamw_torch"], "adamw_torch"),
        (["--optim", "adamw_hf"], "adamw_torch"),
        (["--adafactor"], "adafactor"),
    ],
)
def test_what_the_user_says_comes_first(flags: list[str], optimizer: str) -> None:
    args, _, _ = make_training_arguments(parse_sft([*FLAGS, *flags]), CPUBackend(), {})
    assert args.optim == optimizer
    assert args.logging_nan_inf_filter is False


def test_a_gpu_copies_batches_while_it_works() -> None:
    defaults = CUDABackend().training_argument_defaults()
    assert defaults["optim"] == "adamw_torch_fused"
    assert defaults["accelerator_config"] == {"non_blocking": True}


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--split_batches"], {"split_batches": True, "non_blocking": True}),
        (["--accelerator_config", '{"even_batches": false}'], {"even_batches": False, "non_blocking": True}),
        (["--accelerator_config", "FILE"], {"split_batches": True, "non_blocking": True}),
        (["--accelerator_config", '{"non_blocking": false}'], {"non_blocking": False}),
    ],
)
def test_what_is_said_of_batches_leaves_the_rest_to_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], found: dict[str, bool]
) -> None:
    defaults = CUDABackend().training_argument_defaults()
    monkeypatch.setattr(CPUBackend, "training_argument_defaults", lambda self: defaults)
    file = tmp_path / "batches.json"
    file.write_text('{"split_batches": true}')
    run = parse_sft([*FLAGS, *(str(file) if word == "FILE" else word for word in flags)])
    args, _, _ = make_training_arguments(run, CPUBackend(), {})
    assert found.items() <= args.accelerator_config.to_dict().items()


def test_a_loss_that_is_no_number_is_logged_as_one(tmp_path: Path) -> None:
    """Not as the mean of those before it."""
    defaults = CPUBackend().training_argument_defaults()
    model = tiny_model()
    trainer = sft_trainer(tmp_path, model, max_steps=1, **defaults)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["loss"] != line["loss"]
