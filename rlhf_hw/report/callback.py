"""Between the Trainer and the run directory."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_hw.report.report import write_report
from rlhf_hw.run_directory import RunDirectory

logger = logging.getLogger(__name__)


class RunDirectoryCallback(TrainerCallback):
    """Forwards what the Trainer logs to metrics.jsonl, and writes plots and report when training ends."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step > 0:  # a checkpoint was loaded: forget what was logged after it
            self.run.truncate_after(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            metrics = {name: value for name, value in logs.items() if name != "epoch"}
            self.run.log(metrics, step=state.global_step, epoch=state.epoch)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.run.own_checkpoint(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.report()

    def report(self) -> None:
        """Write the report of what is logged so far. Where it cannot be drawn the log says so and the run goes on:
        the weights, not saved yet, are worth more than it."""
        if not self.run.is_main_process:
            return
        try:
            write_report(self.run.path)
        except Exception as error:
            logger.exception("the report of %s could not be written", self.run.path)
            self.run.event("report_failed", reason=f"{type(error).__name__}: {error}")
