"""Proximal policy optimisation with a critic, as a trainer.

PPO here is a `Trainer` whose batches come from its own rollouts. An *update* is: answer a batch of prompts, make
experience of them (`experience.py`), then `ppo_epochs` passes over it in shuffled minibatches. An optimizer step of
the trainer is one minibatch of `mini_batch_size × gradient_accumulation_steps` answers a process. Checkpointing,
schedules, mixed precision, distributed training and logging are the base trainer's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from backends.shapes import RolloutShapes
from rlhf_hw.errors import UserError
from rlhf_hw.models.reward_model import RewardStatistics
from rlhf_hw.rollout.engine import RolloutEngine
from rlhf_hw.rollout.sampling import mix_seed
from rlhf_hw.trainers.base import StageMixin
from rlhf_hw.trainers.ema import PolicyAverage
from rlhf_hw.trainers.experience import Experience, ExperienceMaker
from rlhf_hw.trainers.metrics import PhaseTimer
from rlhf_hw.trainers.minibatch import minibatch_loss
from rlhf_hw.trainers.optimizer_steps import FiniteStepsOnly, give_critic_its_own
from rlhf_hw.trainers.prompts import PromptBatch, PromptSchedule
from rlhf_hw.trainers.ptx import UnsupervisedBatches
from rlhf_hw.trainers.scoring import Scorer
from rlhf_hw.trainers.sharding import whole_weights, zero_stage_of

if TYPE_CHECKING:
    from rlhf_hw.arguments.ppo import PPOArguments

STATE_FILE = "ppo_state.json"
#: An update ends early when the policy has moved more than this many times `target_kl` (Intel's and TRL's rule).
EARLY_STOP_FACTOR = 1.5

SampleSink = Callable[[int, list[dict[str, Any]]], None]


def updates_in(settings: PPOArguments, world_size: int) -> int:
    """Updates it takes until `settings.steps` answers were written by all processes together."""
    return max(1, -(-settings.steps // (settings.answers_per_update * world_size)))


def steps_per_update(settings: PPOArguments, accumulation: int) -> int:
    """Optimizer steps in one update."""
    return settings.ppo_epochs * settings.answers_per_update // (settings.mini_batch_size * accumulation)


def evaluation_metrics(prediction: Any) -> dict[str, float]:
    """Means of what `prediction_step` found for each held-out prompt."""
    names = ("scores", "kl", "length", "eos_rate")
    return {name: float(column.mean()) for name, column in zip(names, prediction.predictions.T, strict=True)}


class PPOMixin(StageMixin):
    """Trains an `ActorCritic`.

    Keyword args beyond the base trainer's:
        settings: the PPO flags.
        engine, scorer: draw answers and score them.
        shapes: the widths of a rollout.
        synchronize: the backend's, for honest timings.
        statistics: of the reward model's scores, to normalise by.
        unsupervised: blocks of text (rows with `input_ids`, of one length) to model as well.
        on_samples: called on the main process with (update, samples) after each rollout.
    `train_dataset` and `eval_dataset` hold prompts: rows with `input_ids` and `prompt`.
    """

    def __init__(
        self,
        *args: Any,
        settings: PPOArguments,
        engine: RolloutEngine,
        scorer: Scorer,
        shapes: RolloutShapes,
        synchronize: Callable[[], None],
        statistics: RewardStatistics | None = None,
        unsupervised: Any = None,
        on_samples: SampleSink | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{"shapes": shapes.sequences, **kwargs})
        self.rollout_shapes = shapes
        if settings.early_stopping and self.args.fp16:
            raise UserError(
                "--early_stopping: the loss scaling of --fp16 cannot leave optimizer steps out; use --bf16 or leave one out"
            )
        if settings.enable_ema and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise UserError("--enable_ema: weights that are shared out cannot be averaged; leave one out")
        self.settings = settings
        self.on_samples = on_samples
        self.timer = PhaseTimer(synchronize)
        self.compute_metrics = evaluation_metrics
        self.maker = ExperienceMaker(
            settings,
            tokenizer=self.processing_class,
            engine=engine,
            scorer=scorer,
            accelerator=self.accelerator,
            autocast=self.autocast,
            timer=self.timer,
            shapes=shapes,
            statistics=statistics,
        )
        self.prompts = PromptSchedule(self.train_dataset, self.args.seed)
        self.updates = updates_in(settings, self.accelerator.num_processes)
        self.steps_per_update = steps_per_update(settings, self.args.gradient_accumulation_steps)
        self.steps_per_epoch = self.steps_per_update // settings.ppo_epochs
        self.experience: Experience | None = None
        self.items_of_step = torch.zeros(0)
        self.progress: dict[str, float] = {}
        self.written = torch.zeros(2)  # answers and their tokens since the last log line, over all processes
        #: sum of old - new log-probability over this epoch's tokens, and their number
        self.moved = torch.zeros(2)
        self.stopped = False
        self.unsupervised = None
        if unsupervised is not None:
            length, context = (
                len(unsupervised[0]["input_ids"]),
                getattr(self.model.config, "max_position_embeddings", None),
            )
            if context and length > context:
                raise UserError(
                    f"--unsupervised_dataset_name: blocks of {length} tokens exceed the model's context of {context}; set "
                    "model_max_length in its tokenizer_config.json"
                )
            self.unsupervised = UnsupervisedBatches(
                unsupervised,
                rows=settings.mini_batch_size,
                micro_batches=self.args.gradient_accumulation_steps,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                seed=self.args.seed,
            )
        self.ema = None
        if settings.enable_ema:
            self.ema = PolicyAverage(self.model.policy, settings.ema_decay, self.model.policy_parameters())
        self.skipped_steps = 0  # since the last log line
        self.add_callback(self._finite_steps_only())

    # The batches are the trainer's own experience
    def get_train_dataloader(self) -> DataLoader:
        """A clock that ticks once for each micro-batch of the run."""
        ticks = self.updates * self.steps_per_update * self.args.gradient_accumulation_steps
        return DataLoader(range(ticks), batch_size=1)

    def next_batches(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """The micro-batches of one optimizer step; a new update begins with a rollout."""
        ticks = len(list(islice(epoch_iterator, num_batches)))
        update, step = divmod(self.state.global_step, self.steps_per_update)
        if step == 0:
            self.timer.close()
            self._begin_update(update)
        elif self.experience is None:
            raise UserError(
                f"--resume_from_checkpoint: step {self.state.global_step} lies inside a PPO update of "
                f"{self.steps_per_update} steps; resume from a checkpoint between two updates"
            )
        elif step % self.steps_per_epoch == 0:
            self.decide_early_stop()
        if step == self.steps_per_update - 1:
            self.averages.add("ppo/early_stopped", float(self.stopped))
        if self.stopped:
            return [{"skip": True}] * ticks, torch.zeros((), device=device)
        assert self.experience is not None
        return self.batches_of_step(self.experience, update, step), self.items_of_step[step].to(device)

    def batches_of_step(self, experience: Experience, update: int, step: int) -> list[dict[str, Any]]:
        """The micro-batches of optimizer step `step` of update `update`, with their share of unsupervised text."""
        rows = self._rows_of_step(experience, update, step)
        batches = [experience.minibatch(part, self.rollout_shapes) for part in rows]
        if self.unsupervised is not None:
            texts = self.unsupervised.of_step(update * self.steps_per_update + step)
            for batch, ids in zip(batches, texts, strict=True):
                batch["unsupervised_ids"] = ids
        return batches

    def _begin_update(self, update: int) -> None:
        """Roll out, make experience, and count the tokens of each optimizer step over all processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        prompts = self.prompts.batch(update, rank, world, self.settings.answers_per_update)
        self.experience, samples = self.make_experience(prompts)
        self.count_update(self.experience, update)
        if self.on_samples is not None and self.accelerator.is_main_process:
            self.on_samples(update + 1, samples)

    def make_experience(self, prompts: PromptBatch) -> tuple[Experience, list[dict[str, Any]]]:
        """(experience, samples as text): answers to `prompts` with all that an update needs of them.

        What is logged of them goes into the next log line.
        """
        with whole_weights(self) as model:
            experience, metrics, samples = self.maker.generate_experience(model, prompts)
        answers = len(prompts.rows) * self.accelerator.num_processes
        self.written += torch.tensor([answers, metrics.pop("response/tokens")])
        for name, value in metrics.items():
            self.averages.add(name, value)
        return experience, samples

    def count_update(self, experience: Experience, update: int) -> None:
        """Be ready to learn from `experience` as update number `update` (from 0)."""
        lengths = experience.lengths()
        steps = range(self.steps_per_update)
        rows = [list(chain(*self._rows_of_step(experience, update, step))) for step in steps]
        local = torch.stack([lengths[row].sum() for row in rows]).float()
        # on the host: as parts of one tensor on the device, each step's number would be a graph's input of its own kind
        self.items_of_step = self.accelerator.reduce(local, reduction="sum").cpu()
        self.moved = torch.zeros(2, device=lengths.device)
        self.stopped = False
        answers = self.settings.answers_per_update * self.accelerator.num_processes
        self.progress = {"ppo/update": update + 1, "ppo/episodes": (update + 1) * answers}

    def _rows_of_step(self, experience: Experience, update: int, step: int) -> list[list[int]]:
        """Rows of each micro-batch of optimizer step `step`: shuffled over the epoch, alike in length within it."""
        settings = self.settings
        epoch, window = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(mix_seed(self.args.seed, update, epoch, 2))
        order = torch.randperm(settings.answers_per_update, generator=generator)
        rows = order.view(self.steps_per_epoch, -1)[window]
        lengths = experience.rollout.attention_mask.sum(dim=1).cpu()[rows]
        rows = rows[lengths.argsort(stable=True)]
        return [part.tolist() for part in rows.split(settings.mini_batch_size)]

    def decide_early_stop(self) -> None:
        """After an epoch: leave the rest of the update out if the policy has moved too far."""
        total, count = self.accelerator.reduce(self.moved, reduction="sum").tolist()
        self.moved.zero_()
        if (
            self.settings.early_stopping
            and total / max(count, 1) > EARLY_STOP_FACTOR * self.settings.target_kl
        ):
            self.stopped = True

    # The step
    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A step of the base trainer; nothing at all in an update that was stopped early (no gradient, no step)."""
        if "skip" in inputs:
            return torch.zeros((), device=self.args.device)
        self.timer.open(
            "optimise"
        )  # until the next rollout, log line or checkpoint: the optimizer's step is in it
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """PPO's loss of this micro-batch, and `unsup_coef` times that of its unsupervised text."""
        found = minibatch_loss(model, inputs, self.settings, self.rollout_shapes.answer_width)
        loss = self.scale_loss(found.total, num_items_in_batch)
        if found.unsupervised is not None:
            assert self.unsupervised is not None
            share = self.accelerator.num_processes / self.unsupervised.tokens_per_step
            loss = loss + self.settings.unsup_coef * share * found.unsupervised
        with torch.no_grad():
            tokens = found.tokens
            self.moved += torch.stack((found.moved, tokens.float()))
            self.averages.add("policy/loss", found.policy.loss.sum(), tokens)
            self.averages.add("policy/ratio", found.policy.ratio.sum(), tokens)
            self.averages.add("policy/clipfrac", found.policy.clipped.sum(), tokens)
            self.averages.add("policy/approxkl", found.policy.approxkl.sum(), tokens)
            self.averages.add("value/loss", found.value.loss.sum(), tokens)
            self.averages.add("value/clipfrac", found.value.clipped.sum(), tokens)
            self.averages.add("ppo/skipped_minibatches", found.too_far.float())
            if found.unsupervised is not None:
                text = inputs["unsupervised_ids"]
                self.averages.add(
                    "unsupervised/loss", found.unsupervised, float(len(text) * (text.shape[1] - 1))
                )
        return loss

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        return batch["learnt"].sum()

    # The optimizer
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The base's, with the critic's own learning rate and weight decay where they were given."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        rate, decay = self.settings.critic_learning_rate, self.settings.critic_weight_decay
        if made and (rate is not None or decay is not None):
            names = set(self.get_decay_parameter_names(self.model))
            decayed = {weight for name, weight in self.model.named_parameters() if name in names}
            give_critic_its_own(optimizer, set(self.model.value_parameters()), decayed, rate, decay)
        return optimizer

    def _finite_steps_only(self) -> FiniteStepsOnly:
        stage = zero_stage_of(self) if self.is_deepspeed_enabled else None
        steps = (self.model, self.accelerator, self._after_optimizer_step)
        scaled = bool(self.args.fp16 or stage)
        return FiniteStepsOnly(*steps, scaled=scaled, within_backward=stage == 0, parts=self.is_fsdp_enabled)

    def _after_optimizer_step(self, taken: bool) -> None:
        """`taken`: False where a gradient was not finite. After an early stop there was no gradient, and no step."""
        self.skipped_steps += not taken
        if taken and not self.stopped and self.ema is not None:
            self.ema.update()
            self.backend.end_graph()

    def _warm_up(self, *args: Any) -> None:
        super()._warm_up(*args)
        self.moved.zero_()

    # Logging, evaluation, checkpoints
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.timer.close()
        if "loss" in logs:
            times = self.timer.flush()
            answers, tokens = (self.written / max(times.get("time/total", 0.0), 1e-9)).tolist()
            self.written.zero_()
            speed = {"speed/tokens_per_second": tokens, "speed/samples_per_second": answers}
            logs = {**logs, **self.progress, **times, **speed, "ppo/skipped_steps": self.skipped_steps}
            self.skipped_steps = 0
        super().log(logs, *args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """(None, [B, 4] of score, KL, length and whether it ended for each held-out prompt, a placeholder [B])."""
        indices = inputs["index"].tolist()
        rows = [self.eval_dataset[index] for index in indices]
        seeds = [mix_seed(self.args.seed, index, 3) for index in indices]
        with whole_weights(self) as whole:
            found = self.maker.evaluate(whole, PromptBatch(rows, seeds))
        return None, found, torch.zeros(len(found), device=found.device)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.ema is not None and self.args.should_save:
            directory = self.ema.save(output_dir or self.args.output_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(directory)

    def _save_checkpoint(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.timer.close()
        # before the rest: a checkpoint counts as complete once trainer_state.json is there, which comes last
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE_FILE).write_text(
                json.dumps({**self.maker.state_dict(), "layout": self._layout()})
            )
        super()._save_checkpoint(model, *args, **kwargs)

    def load_stage_state(self, checkpoint: str) -> None:
        state = json.loads((Path(checkpoint) / STATE_FILE).read_text())
        for what, now in self._layout().items():
            if state["layout"][what] != now:
                raise UserError(
                    f"--resume_from_checkpoint: the first run had {state['layout'][what]} {what} an update, this one has "
                    f"{now}; resume with its batch sizes, epochs and number of processes"
                )
        if self.ema is not None:
            self.ema.load(checkpoint)
        self.maker.load_state_dict(state)

    def _layout(self) -> dict[str, int]:
        """What tells from a number of steps which update it belongs to, and from an update its prompts."""
        answers = self.settings.answers_per_update * self.accelerator.num_processes
        return {"answers": answers, "optimizer steps": self.steps_per_update}


def collate_indices(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Evaluation batches of PPO: which rows of the data set, and nothing else."""
    return {"index": torch.tensor([row["index"] for row in rows])}
