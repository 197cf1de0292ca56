"""PPO in the caller's own loop: `PPOMixin`'s experience, losses and optimizer steps, without its `train`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from rlhf_hw.compat.evaluated_first import forget_preparation
from rlhf_hw.errors import UserError
from rlhf_hw.rollout.sampling import mix_seed
from rlhf_hw.trainers.experience import Experience
from rlhf_hw.trainers.prompts import PromptBatch


class UpdatesByHand:
    """Updates of a `PPOMixin` trainer, one call each for a rollout and for learning from it.

    The same prompts in the same order give the very weights that the trainer's own `train` gives.
    """

    def __init__(self, trainer: Any) -> None:
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise UserError(
                "PPO in a loop of one's own: weights that are shared out are trained by rlhf-hw ppo only"
            )
        self.trainer = trainer
        self.update = 0
        #: what `rlhf-hw ppo` logs of an update, after each `learn`
        self.metrics: dict[str, float] = {}
        if trainer.args.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        forget_preparation(trainer.model)
        trainer.create_optimizer()
        self.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.model_wrapped = self.model
        trainer.create_scheduler(num_training_steps=trainer.args.max_steps)

    def experience(self, rows: list[dict[str, Any]]) -> tuple[Experience, list[dict[str, Any]]]:
        """(experience, samples as text) of this process's prompts, rows of `for_prompts`: as many as an update has.

        Raises:
            ValueError: there are more or fewer.
        """
        trainer = self.trainer
        wanted = trainer.settings.answers_per_update
        if len(rows) != wanted:
            raise ValueError(f"an update answers {wanted} prompts (batch_size), found {len(rows)}")
        rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
        first = (self.update * world + rank) * wanted
        seeds = [mix_seed(trainer.args.seed, position) for position in range(first, first + wanted)]
        return trainer.make_experience(PromptBatch(rows, seeds))

    def learn(self, experience: Experience) -> tuple[float, float]:
        """All epochs over `experience`; (policy loss, value loss) a token, means of the update over all processes."""
        trainer = self.trainer
        trainer.count_update(experience, self.update)
        for step in range(trainer.steps_per_update):
            if step and step % trainer.steps_per_epoch == 0:
                trainer.decide_early_stop()
            if not trainer.stopped:
                self._gradients_of_step(experience, step)
            self._optimizer_step()  # without any gradient, after an early stop: the schedule goes on as in `train`
        trainer.timer.close()
        self.update += 1
        times = trainer.timer.flush()
        self.metrics = {**trainer.averages.flush(trainer.accelerator), **trainer.progress, **times}
        return self.metrics["policy/loss"], self.metrics["value/loss"]

    def _gradients_of_step(self, experience: Experience, step: int) -> None:
        trainer = self.trainer
        batches = trainer.batches_of_step(experience, self.update, step)
        items = trainer.items_of_step[step].to(trainer.args.device)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else trainer.accelerator.no_sync(self.model):
                trainer.training_step(self.model, batch, items)

    def _optimizer_step(self) -> None:
        trainer, args = self.trainer, self.trainer.args
        if args.max_grad_norm > 0:
            trainer.accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        trainer.callback_handler.on_pre_optimizer_step(args, trainer.state, trainer.control)
        trainer.optimizer.step()
        trainer.callback_handler.on_optimizer_step(args, trainer.state, trainer.control)
        if not trainer.accelerator.optimizer_step_was_skipped:
            trainer.lr_scheduler.step()
        self.model.zero_grad()
        trainer.state.global_step += 1
