"""What the three stages add to a trainer alike: exact loss averaging, metrics, and saving wrapped models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback

from backends import Backend
from backends.cpu import CPUBackend
from backends.shapes import DynamicShapes, ShapePolicy
from rlhf_hw.compat.evaluated_first import forget_preparation
from rlhf_hw.compat.training_flags import groups_by_length
from rlhf_hw.data.length_groups import GroupedByLength
from rlhf_hw.data.lengths import lengths_of_rows
from rlhf_hw.errors import UserError
from rlhf_hw.models.fused_kernels import fuse_kernels
from rlhf_hw.models.right_padded import leave_masks_out
from rlhf_hw.models.unpadded import leave_padding_out
from rlhf_hw.models.weights import load_weights_into, save_weights
from rlhf_hw.models.wrapping import adapter_state, trunk, unwrap
from rlhf_hw.rollout.sampling import mix_seed
from rlhf_hw.run_files import last_checkpoint
from rlhf_hw.trainers import fsdp
from rlhf_hw.trainers.finished import empty_epoch_is_meant, nothing_left
from rlhf_hw.trainers.fully_sharded import FullySharded
from rlhf_hw.trainers.metrics import RunningAverages, TokenRate
from rlhf_hw.trainers.sharding import leave_models_whole, sharded_autocast


def at_width(batch: dict[str, Any], length: int, width: int) -> dict[str, Any]:
    """`batch` with its tensors [B, `length`] cut, or drawn out by their last column, to [B, `width`]."""

    def resized(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or tensor.dim() < 2 or tensor.shape[1] != length:
            return tensor
        rest = tensor[:, -1:].expand(-1, max(0, width - length))
        return torch.cat([tensor[:, :width], rest], dim=1)

    return {name: resized(value) for name, value in batch.items()}


def make_optimizer_state(model: nn.Module, optimizer: Any) -> None:
    """Make what the optimizer keeps for each parameter, which it else makes in its first step, and change nothing.

    It takes a step of length zero along gradients of zero; zeros are what Adam and Adafactor begin with. Left undone
    for other optimizers, and where there is a state already (a resumed run).
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # inside accelerate's
    if optimizer.state or not type(optimizer).__name__.startswith(("Adam", "FusedAdam", "Adafactor")):
        return
    model.zero_grad(set_to_none=False)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "step" in group:
            group["step"] = 0
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                value.zero_()
            elif isinstance(value, (int, float)):
                state[name] = type(value)(0)


def decoders(model: Any) -> list[Any]:
    """The transformers models inside what a stage trains: itself, or those of its roles."""
    held = getattr(model, "checkpointed_models", None)
    return [model] if held is None else list(held())


def replay_passes(backend: Backend, model: Any, *, sharded: bool = False) -> None:
    """Let the device record and replay the forward passes of every decoder in `model`; the heads stay outside.

    Or, where shapes are free, let each run on real tokens alone.
    """
    for inner in decoders(model):
        if backend.leaves_padding_out:
            leave_padding_out(inner)
        backend.replay_passes(trunk(inner), partial(adapter_state, inner), sharded=sharded)


class OptimizerStepApart(TrainerCallback):
    """On a device that collects graphs, the optimizer's step is one of its own, the same each time."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def on_pre_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        self.backend.end_graph()

    def on_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        self.backend.end_graph()


class SeededByEpoch(Sampler[int]):
    """`sampler`, which draws from its `generator`, in an order that follows from `seed` and `epoch()` alone.

    accelerate's own shuffling forgets the epoch where a run is resumed in the middle of one (below 1.11), and
    grouping by length draws from the process's stream, which stands elsewhere in a resumed run.
    """

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch()))
        yield from self.sampler


class StageMixin(FullySharded):
    """Goes in front of `transformers.Trainer` or a class derived from it.

    A stage's loss is a sum over items (tokens or pairs) divided by the number of items in the *whole* optimizer
    step: all micro-batches, all processes. So N accumulation steps, N processes and one large batch give one
    gradient (transformers' mean of means does not: transformers#34191).
    """

    backend: Backend = CPUBackend()
    #: columns whose longest list is a row's length; where there are none, rows are not grouped by length
    length_columns: tuple[str, ...] = ()

    def __init__(self, model: Any, args: Any, shapes: ShapePolicy | None = None, **kwargs: Any) -> None:
        # One process drives one device, also where it sees several: the base would put them into nn.DataParallel,
        # which knows nothing of step-wide averages. Asking for the device is what settles `n_gpu`.
        if args.device is not None:
            args._n_gpu = min(args.n_gpu, 1)
        if args.use_liger_kernel:
            for decoder in decoders(model):
                fuse_kernels(decoder, args.liger_kernel_config)
            args.use_liger_kernel = False  # done: the base knows no models inside models
        super().__init__(model=model, args=args, **self.backend.trainer_arguments(), **kwargs)
        self.shapes = shapes or DynamicShapes()
        # DeepSpeed takes a step whenever it has gone backward: a round of practice would train
        self.warm = self.shapes.may_vary or self.is_deepspeed_enabled
        if not self.shapes.may_vary:
            self.add_callback(OptimizerStepApart(self.backend))
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        replay_passes(self.backend, self.model, sharded=sharded)
        if self.shapes.may_vary:
            for decoder in decoders(self.model):
                leave_masks_out(decoder)
        self.averages = RunningAverages()
        self.tokens = TokenRate()
        # Tells the base not to divide the loss by the accumulation steps: `scale_loss` has done it.
        self.model_accepts_loss_kwargs = True
        if getattr(self.args, "deepspeed", None) and not self.is_deepspeed_enabled:
            raise UserError(
                "--deepspeed: accelerate leaves it out in this environment; unset ACCELERATE_USE_CPU"
            )
        if self.is_deepspeed_enabled:  # accelerate would take DeepSpeed's number over, with a warning
            self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps
            leave_models_whole()

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, in step with the other processes also where an evaluation came first.

        `resume_from_checkpoint`: a directory; or true, for the last checkpoint in `output_dir`.
        """
        forget_preparation(self.model)
        if resume_from_checkpoint is True:
            last = last_checkpoint(self.args.output_dir)
            if last is None:
                raise UserError(
                    f"--resume_from_checkpoint: there is no checkpoint in {self.args.output_dir}; name one"
                )
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint:
            self.load_stage_state(str(resume_from_checkpoint))
            if nothing_left(str(resume_from_checkpoint), self.args.max_steps):
                with empty_epoch_is_meant(self):
                    return super().train(resume_from_checkpoint, *args, **kwargs)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The base's; for DeepSpeed without empty groups, which it drops after the schedule has counted them.

        Where DeepSpeed's configuration names an optimizer, the base gives a stand-in without any groups.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.is_deepspeed_enabled and hasattr(optimizer, "param_groups"):
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # The order of the data
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The base's sampler, or the one that groups rows by length; the order is a function of seed and epoch."""
        if self.length_columns and groups_by_length(self.args):
            rows = self.args.train_batch_size * self.args.gradient_accumulation_steps
            lengths = self._lengths(args[0] if args else self.train_dataset)
            sampler = GroupedByLength(lengths, rows * self.accelerator.num_processes)
        else:
            sampler = super()._get_train_sampler(*args, **kwargs)
        if not hasattr(sampler, "generator"):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SeededByEpoch(sampler, seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The base's, or the longest rows first: what an evaluation says does not depend on the order."""
        if not (self.length_columns and groups_by_length(self.args)):
            return super()._get_eval_sampler(eval_dataset)
        lengths = self._lengths(eval_dataset)
        return sorted(range(len(lengths)), key=lambda row: lengths[row], reverse=True)

    def _lengths(self, dataset: Any) -> list[int]:
        return lengths_of_rows(dataset, self.length_columns, self.args.length_column_name)

    def get_train_dataloader(self) -> Any:
        """The base's; where shapes are fixed without a last, smaller batch (unless it is the only one)."""
        rows_a_batch = self.args.train_batch_size * self.accelerator.num_processes
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else rows_a_batch
        full = not self.shapes.may_vary and rows >= rows_a_batch
        with self._last_batch(dropped=full or self.args.dataloader_drop_last):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        with self._last_batch(dropped=False):
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        with self._last_batch(dropped=False):
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _last_batch(self, *, dropped: bool) -> Iterator[None]:
        """Dataloaders made inside leave the last, incomplete batch out, or not: `--dataloader_drop_last` is about
        training, and an evaluation that left rows out would be another's. (optimum-habana takes the flag to mean that
        processes may have different numbers of batches, which an evaluation cannot end with.)
        """
        args, accelerator = self.args, self.accelerator
        said, even = args.dataloader_drop_last, accelerator.even_batches
        args.dataloader_drop_last, accelerator.even_batches = dropped, True
        try:
            yield
        finally:
            args.dataloader_drop_last, accelerator.even_batches = said, even

    # The loss of an optimizer step
    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        """Number of items in a micro-batch that the loss sums over (0-d tensor)."""
        raise NotImplementedError

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro-batches of one optimizer step, and their number of items over all processes.

        None where the last step is taken already (a run resumed at its end): the base looks at that after a step only.
        """
        if 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
            return [], torch.zeros((), device=device)
        return self.next_batches(epoch_iterator, num_batches, device)

    def next_batches(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """`get_batch_samples` of a step that is yet to be taken."""
        batches = list(islice(epoch_iterator, num_batches))
        self.backend.end_graph()
        counts = []
        for batch in batches:
            counts.append(self.count_items(batch).to(device).float())
            self.backend.end_graph()
        items = torch.stack(counts).sum() if counts else torch.zeros((), device=device)
        items = self.accelerator.reduce(items, reduction="sum")
        self.backend.end_graph()
        return batches, items

    #: the name under which optimum-habana's trainer calls it
    def get_batch_samples_transformers(self, *args: Any) -> tuple[list[Any], torch.Tensor]:
        return self.get_batch_samples(*args)

    def scale_loss(self, total: torch.Tensor, items: torch.Tensor | None) -> torch.Tensor:
        """Turn a micro-batch's summed loss into its share of the step's mean.

        Times the number of processes, because data-parallel gradients are averaged over them.
        """
        if items is None:
            raise RuntimeError("the trainer did not hand over the number of items of the step")
        return total * self.accelerator.num_processes / items.clamp(min=1)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The mixed precision of training, for forward passes outside of it: accelerate's, or the base trainer's own."""
        with self.accelerator.autocast(), self.autocast_smart_context_manager(), sharded_autocast(self):
            yield

    def _prepare_input(self, data: Any) -> Any:
        """To the device. The base casts inputs to the precision of DeepSpeed's weights, also what must stay in fp32:
        the log-probabilities that a ratio is made of."""
        if self.is_deepspeed_enabled and isinstance(data, torch.Tensor):
            return data.to(self.args.device)
        return super()._prepare_input(data)

    # Static shapes
    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A micro-batch's forward and backward pass, on a device that collects graphs as a graph of its own."""
        if not self.warm:
            self._warm_up(model, inputs, num_items_in_batch)
        self.backend.end_graph()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.backend.end_graph()
        return loss

    def _warm_up(self, model: Any, inputs: dict[str, Any], items: Any) -> None:
        """Show the device every graph there will be, so that it compiles them all before the first step.

        A first round also makes what is made once (accumulators); the second is like all that follow. Nothing of it
        stays: gradients are dropped, random numbers and averages put back, and the optimizer has done nothing.
        """
        self.warm = True
        length = inputs["input_ids"].shape[1]
        passes = 1 if self.args.gradient_accumulation_steps == 1 else 2  # into no gradient, and onto one
        with self.backend.forked_random_numbers(), self.averages.nothing_counts():
            for _ in range(2):
                for width in self.shapes.buckets if length in self.shapes.buckets else (length,):
                    batch = at_width(inputs, length, width)
                    self.backend.end_graph()
                    self.count_items(batch).to(self.args.device).float()
                    self.backend.end_graph()
                    model.zero_grad()
                    for _ in range(passes):
                        super().training_step(model, batch, items)
                        self.backend.end_graph()
        make_optimizer_state(model, self.optimizer)
        self.backend.end_graph()
        model.zero_grad()
        self.tokens.clear()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """An evaluation, which begins with a graph of its own."""
        self.backend.end_graph()
        return super().evaluation_loop(*args, **kwargs)

    # Logging
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the averages since the last line where it is a training line."""
        if "loss" in logs:
            logs = {**logs, **self.averages.flush(self.accelerator), **self.tokens.flush(self.accelerator)}
        super().log(logs, *args, **kwargs)

    # Saving
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = unwrap(self.model)
        directory = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if hasattr(model, "load_weights"):
            model.save_pretrained(directory, state_dict=state_dict)
        else:
            save_weights(model, directory, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)
        torch.save(self.args, directory / "training_args.bin")

    def load_checkpoint_weights(self, checkpoint: str) -> None:
        """Take over a checkpoint's weights without training on."""
        self.load_stage_state(checkpoint)
        self._load_from_checkpoint(checkpoint)

    def load_stage_state(self, checkpoint: str) -> None:
        """Take over what the stage keeps in a checkpoint beside weights and optimizer: here nothing."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint, bit for bit."""
        target = unwrap(model or self.model)
        with fsdp.taking_whole_weights(target):
            if hasattr(target, "load_weights"):
                target.load_weights(resume_from_checkpoint)
            else:
                load_weights_into(target, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint (`--load_best_model_at_end`)."""
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
