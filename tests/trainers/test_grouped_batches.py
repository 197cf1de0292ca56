"""Where a device pads, a stage's rows are grouped by length; the user's word counts more."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import arguments, pair_rows, reward_trainer, sft_rows, sft_trainer

from backends.cpu import CPUBackend
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.cli.training_arguments import make_training_arguments
from rlhf_hw.compat.training_flags import groups_by_length, length_grouping

BY_LENGTH = length_grouping(True, set(arguments(Path("out")).__dataclass_fields__))
NAMES = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--device", "cpu"]
LENGTHS = [4, 30, 5, 29, 6, 28, 7, 27, 8, 26, 9, 25]


class Padding(CPUBackend):
    """A device that pads, as a GPU does."""

    leaves_padding_out = False


def trainer_of(stage: str, directory: Path, **options: Any) -> Any:
    options = {**BY_LENGTH, "logging_steps": 1, **options}
    if stage == "sft":
        return sft_trainer(directory, tiny_model(), sft_rows(LENGTHS), **options)
    return reward_trainer(directory, tiny_model(labels=1), pair_rows(12), **options)


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_batches_hold_rows_of_like_length_and_evaluations_every_row(tmp_path: Path, stage: str) -> None:
    trainer = trainer_of(stage, tmp_path, per_device_train_batch_size=2)
    batches = list(trainer.get_train_dataloader())
    lengths = [batch["attention_mask"].sum(dim=1) for batch in batches]
    spread = sum(int(found.max() - found.min()) for found in lengths) / len(lengths)
    assert spread < 5  # at random 12 and more (sft)
    assert sum(map(len, lengths)) == 12 * (2 if stage == "reward" else 1)
    widths = [batch["input_ids"].shape[1] for batch in trainer.get_eval_dataloader()]
    assert widths == sorted(widths, reverse=True)
    ungrouped = trainer_of(stage, tmp_path / "2", **length_grouping(False, set(BY_LENGTH)))
    found, expected = trainer.evaluate(), ungrouped.evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


def test_a_grouped_epoch_differs_from_the_next_and_is_the_same_in_a_process_started_anew(
    tmp_path: Path,
) -> None:
    def order(epoch: float) -> list[int]:
        trainer = trainer_of("sft", tmp_path, per_device_train_batch_size=2)
        trainer.state.epoch = epoch
        torch.manual_seed(int(torch.randint(1 << 30, ())))  # the process's stream stands elsewhere
        return list(trainer._get_train_sampler(trainer.train_dataset))

    assert order(0.0) == order(0.5)
    assert order(0.0) != order(1.0)


@pytest.mark.parametrize(
    ("stage", "flags", "backend", "grouped"),
    [
        ("sft", [], Padding, True),
        ("reward", [], Padding, True),
        ("sft", [], CPUBackend, False),
        ("sft", ["--group_by_length"], CPUBackend, True),
        ("sft", ["--group_by_length", "False"], Padding, False),
        ("reward", ["--group_by_length=False"], Padding, False),
        ("sft", ["--packing"], Padding, False),
        ("sft", ["--pad_to_max_length"], Padding, False),
        ("sft", ["--dataset_concatenation"], Padding, False),
    ],
)
def test_rows_are_grouped_where_the_device_pads_them(
    stage: str, flags: list[str], backend: type, grouped: bool
) -> None:
    run = {"sft": parse_sft, "reward": parse_reward}[stage]([*NAMES, *flags])
    args, _, lines = make_training_arguments(run, backend(), {})
    assert groups_by_length(args) is grouped
    assert any("like length" in line for line in lines) is grouped
