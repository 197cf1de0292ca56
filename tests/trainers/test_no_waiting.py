"""Between two log lines nothing of a step waits for the device.

The device is torch's `meta` here: tensors of shapes without data. Whatever looks at what a device has worked out (`item`,
`tolist`, `if tensor`, a boolean index, `nonzero`, `repeat_interleave` without a size) raises on it, and so does a copy back.
Copies to the device are watched for: one that is no part of a batch, or that the host waits for, is a fault too.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import pair_rows, sft_rows, weights, with_lora
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback, TrainingArguments

from backends.cpu import CPUBackend
from backends.cuda import CUDABackend
from backends.shapes import DynamicShapes
from rlhf_hw.data.collate import PairCollator, SFTCollator
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.trainers import trainer_for
from rlhf_hw.trainers.reward import RewardMixin
from rlhf_hw.trainers.sft import SFTMixin

STEPS = 3
RECOMPUTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


class DataLessDevice(CPUBackend):
    """Pads its batches and has the training arguments of a GPU, but for kernels and memory that torch has for GPUs only."""

    leaves_padding_out = False

    def training_argument_overrides(self) -> dict[str, Any]:
        return {"dataloader_pin_memory": False, "optim": "adamw_torch"}

    def training_argument_defaults(self) -> dict[str, Any]:
        return CUDABackend().training_argument_defaults()


class OnMeta(TrainingArguments):
    @property
    def device(self) -> torch.device:
        _ = super().device  # settles the number of devices
        return torch.device("meta")


class Reached(Exception):
    """As many steps were taken as are to be looked at."""


class StopAfter(TrainerCallback):
    def on_step_end(self, _args: Any, state: Any, *_: Any, **_kwargs: Any) -> None:
        if state.global_step == STEPS:
            raise Reached


class CopiesToTheDevice(TorchDispatchMode):
    """Lists the copies from the host to the device for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        copied = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if copied and found.is_meta and not (kwargs.get("non_blocking") or args[-1] is True):
            source = args[1] if function.overloadpacket is torch.ops.aten.copy_ else args[0]
            if not source.is_meta:
                self.waited_for.append(f"{tuple(source.shape)} {source.dtype}")
        return found


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device


def trainer_of(
    stage: str, directory: Path, model: Any, *, with_places: bool = True, rows: Any = None, **options: Any
) -> Any:
    backend = DataLessDevice()
    settings = {
        "output_dir": str(directory),
        "report_to": "none",
        "save_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2 * STEPS,
        "logging_steps": 100,
    }
    settings = backend.training_argument_defaults() | settings | backend.training_argument_overrides()
    args = (TrainingArguments if options.get("use_cpu") else OnMeta)(**settings | options)
    shapes = DynamicShapes(multiple_of=8)
    common = {"args": args, "shapes": shapes}
    if stage == "sft":
        collator = SFTCollator(0, shapes.pad_length, with_places=with_places)
        return trainer_for(SFTMixin, backend)(
            model=model,
            train_dataset=sft_rows() if rows is None else rows,
            data_collator=collator,
            **common,
        )
    collator = PairCollator(0, shapes.pad_length)
    return trainer_for(RewardMixin, backend)(
        model=RewardModel(model), train_dataset=pair_rows(), data_collator=collator, **common
    )


@pytest.mark.parametrize("options", [{}, RECOMPUTED], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_steps_wait_for_nothing(
    tmp_path: Path, on_meta: None, stage: str, lora: bool, options: dict[str, Any]
) -> None:
    model = tiny_model(labels=1) if stage == "reward" else tiny_model()
    if lora:
        model = with_lora(model, "SEQ_CLS" if stage == "reward" else "CAUSAL_LM")
    trainer = trainer_of(stage, tmp_path, model, **options)
    trainer.add_callback(StopAfter())
    with CopiesToTheDevice() as copies, pytest.raises(Reached):
        trainer.train()
    assert trainer.state.global_step == STEPS
    assert trainer.args.device.type == "meta"
    assert copies.waited_for == []


@pytest.mark.parametrize(
    ("with_places", "options"),
    [(False, {}), (True, {"logging_nan_inf_filter": True}), (True, {"logging_steps": 1})],
    ids=["targets of a mask", "a look at every loss", "a log line"],
)
def test_what_waits_is_found(
    tmp_path: Path, on_meta: None, with_places: bool, options: dict[str, Any]
) -> None:
    """Each of these looks at the device's results."""
    trainer = trainer_of("sft", tmp_path, tiny_model(), with_places=with_places, **options)
    trainer.add_callback(StopAfter())
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta"):
        trainer.train()


def test_a_copy_that_is_waited_for_is_found(tmp_path: Path, on_meta: None) -> None:
    trainer = trainer_of("reward", tmp_path, tiny_model(labels=1), accelerator_config={})
    trainer.add_callback(StopAfter())
    with CopiesToTheDevice() as copies, pytest.raises(Reached):
        trainer.train()
    assert copies.waited_for


def packed_rows() -> datasets.Dataset:
    """Two examples a row."""
    rows = sft_rows()
    joined = zip(*(rows[at : at + 4][name] for at in (0, 4) for name in rows.column_names), strict=True)
    return datasets.Dataset.from_list(
        [{"input_ids": a + b, "loss_mask": c + d, "seq_lengths": [len(a), len(b)]} for a, c, b, d in joined]
    )


def test_steps_on_packed_rows_wait_for_nothing_either(tmp_path: Path, on_meta: None) -> None:
    trainer = trainer_of("sft", tmp_path, tiny_model(), rows=packed_rows())
    trainer.add_callback(StopAfter())
    with CopiesToTheDevice() as copies, pytest.raises(Reached):
        trainer.train()
    assert copies.waited_for == []


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_knowing_the_places_beforehand_changes_nothing_but_rounding(
    tmp_path: Path, architecture: str, packed: bool
) -> None:
    rows = packed_rows() if packed else sft_rows()
    found = []
    for with_places in (False, True):
        model = tiny_model(architecture)
        options = {"use_cpu": True, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.05}
        trainer = trainer_of("sft", tmp_path, model, with_places=with_places, rows=rows, **options)
        trainer.train()
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        found.append((logged, weights(model), trainer.evaluate(rows)["eval_loss"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-5)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
