"""What a trainer does otherwise where FSDP shares its model out; without FSDP, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf_hw.compat.fsdp_through_accelerate import take_fsdp
from rlhf_hw.trainers import fsdp
from rlhf_hw.trainers.sharding import fsdp_plan, sharded_autocast

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

#: the trainer's own name for it
SCHEDULER_FILE = "scheduler.pt"


class FullySharded(TrainerBase):
    """Goes in front of `transformers.Trainer` or a class derived from it."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        take_fsdp(self, fsdp.is_shared)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The base's, of what each process has of the model: it is shared out here, before training begins."""
        if self.is_fsdp_enabled and not fsdp.is_shared(self.model):
            fsdp.share_out(self.model, fsdp_plan(self), self.args.device)
        return super().create_optimizer(*args, **kwargs)

    def compute_loss_context_manager(self) -> Any:
        if self.is_fsdp_enabled:
            return sharded_autocast(self, training=True)
        return super().compute_loss_context_manager()

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        if fsdp.is_shared(model):
            # between micro-batches too each process keeps its share of the gradients, and not all of them
            model.set_requires_gradient_sync(True)
        return super().training_step(model, inputs, num_items_in_batch)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The base's; of a model that FSDP shares out the whole weights."""
        if not fsdp.is_shared(self.model):
            super().save_model(output_dir, _internal_call)
            return
        state = fsdp.whole_state(self.model, kept=self.args.should_save)
        self._save(output_dir, state_dict=state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not fsdp.is_shared(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        fsdp.save_optimizer(self.model, self.optimizer, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not fsdp.is_shared(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if fsdp.load_optimizer(self.model, self.optimizer, checkpoint):
            schedule = torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)
