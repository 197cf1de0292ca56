"""A real Trainer writes its story through the callback; killed and resumed, the story has no seam."""

import json

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from rlhf_hw.report.callback import RunDirectoryCallback
from rlhf_hw.run_directory import RunDirectory
from rlhf_hw.run_files import last_checkpoint, read_json_lines, read_metrics


class Line(torch.nn.Module):
    """y = w·x + b with the loss inside, as the Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, labels):
        prediction = self.linear(x)
        return {"loss": torch.nn.functional.mse_loss(prediction, labels), "logits": prediction}


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


DATA = [{"x": torch.tensor([i / 10]), "labels": torch.tensor([0.3 * i + 1])} for i in range(20)]


def train(path, *, resume=False, kill_at=None, steps=10):
    run = RunDirectory.create(path, command=["sft"], config={}, resume=resume)
    arguments = TrainingArguments(
        output_dir=str(path),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=5,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    torch.manual_seed(0)
    callbacks = [RunDirectoryCallback(run)] + ([KillAt(kill_at)] if kill_at else [])
    trainer = Trainer(Line(), arguments, train_dataset=DATA, eval_dataset=DATA, callbacks=callbacks)
    with run:
        trainer.train(resume_from_checkpoint=str(last_checkpoint(path)) if resume else None)
    return run


def test_logs_of_the_trainer_arrive_with_step_and_epoch_and_end_in_a_report(tmp_path):
    train(tmp_path)
    rows = read_metrics(tmp_path).rows
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert [row["step"] for row in rows if "eval_loss" in row] == [5, 10]
    assert [row["epoch"] for row in rows if "loss" in row] == pytest.approx(
        [0.2 * step for step in range(1, 11)]
    )
    assert all(isinstance(row["loss"], float) and "learning_rate" in row for row in rows if "loss" in row)
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "plots" / "sft.png").exists()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_killed_and_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", kill_at=7)
    train(tmp_path / "killed", resume=True)
    whole, resumed = (
        [(row["step"], row["loss"]) for row in read_metrics(tmp_path / name).rows if "loss" in row]
        for name in ("whole", "killed")
    )
    assert resumed == whole
    events = read_json_lines(tmp_path / "killed" / "events.jsonl").rows
    assert [event["event"] for event in events] == ["started", "interrupted", "resumed", "finished"]
    assert events[2]["step"] == 4


def test_checkpoints_of_a_run_are_its_own_and_go_when_it_is_overwritten(tmp_path):
    train(tmp_path)
    assert last_checkpoint(tmp_path) is not None
    (tmp_path / "checkpoint-4" / "notes.txt").write_text("mine")
    RunDirectory.create(tmp_path, command=["sft"], config={}, overwrite=True)
    assert last_checkpoint(tmp_path) is None
    assert [file.name for file in tmp_path.glob("checkpoint-*/*")] == ["notes.txt"]


def test_other_processes_write_nothing(tmp_path):
    run = RunDirectory.create(tmp_path / "run", command=["sft"], config={}, is_main_process=False)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    Trainer(Line(), arguments, train_dataset=DATA, callbacks=[RunDirectoryCallback(run)]).train()
    assert not (tmp_path / "run").exists()


def test_report_that_cannot_be_drawn_does_not_cost_the_weights(tmp_path, caplog):
    blocked = tmp_path / "plots"

    class PutFileInTheWay(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            blocked.write_text("a file where the folder of plots should be")

    run = RunDirectory.create(tmp_path, command=["sft"], config={})
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    callbacks = [PutFileInTheWay(), RunDirectoryCallback(run)]
    Trainer(Line(), arguments, train_dataset=DATA, callbacks=callbacks).train()
    assert "could not be written" in caplog.text
    assert read_json_lines(tmp_path / "events.jsonl").rows[-1]["event"] == "report_failed"
