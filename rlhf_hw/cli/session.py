"""What the three stages do alike around their training: hardware, logging, data, models, run directory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from backends import Backend, Precision, resolve
from backends.shapes import ShapePolicy, WithinContext, padding_share
from launchers.accelerate import started_alone
from rlhf_hw.arguments.data import parse_data_split
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sharding import fsdp_plan
from rlhf_hw.cli.sharding import evaluate_at_the_start, is_sharded, sharding_notes
from rlhf_hw.cli.training_arguments import make_training_arguments
from rlhf_hw.compat.activation_checkpointing import can_recompute
from rlhf_hw.data.sources import DataSource, Purpose, Splits, load_splits
from rlhf_hw.errors import UserError
from rlhf_hw.models.adapters import attach_adapter, check_trains, configured_adapter, count_parameters
from rlhf_hw.models.layer_classes import check_layer_classes
from rlhf_hw.models.load import LoadOptions, check_model_path, check_tokenizer_path, load_tokenizer
from rlhf_hw.models.wrapping import set_dropout, without_adapters
from rlhf_hw.report.callback import RunDirectoryCallback
from rlhf_hw.report.progress import StageProgress
from rlhf_hw.run_directory import RunDirectory
from rlhf_hw.run_files import last_checkpoint
from rlhf_hw.secrets import SecretVault, install_log_filter, redact_argv
from rlhf_hw.trainers.base import decoders
from rlhf_hw.trainers.finished import nothing_left, steps_of
from rlhf_hw.trainers.sharding import leave_models_whole

logger = logging.getLogger("rlhf_hw")

#: The flags that name the model a stage trains: `--config_name` is its configuration, and no other model's.
_MODEL_FLAGS = ("--model_name_or_path", "--model_name")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Session:
    """One run of a stage, from its flags to its run directory."""

    command: str
    run: Run
    argv: list[str]
    vault: SecretVault
    backend: Backend
    precision: Precision
    args: Any  #: the backend's training arguments
    attention: str

    @classmethod
    def open(
        cls, command: str, run: Run, argv: Sequence[str] | None, training: dict[str, Any] | None = None
    ) -> Session:
        """Resolve the backend and make the training arguments; `training` beats what the flags say."""
        words = list(sys.argv[1:] if argv is None else argv)
        vault = SecretVault(run.secret_values())
        vault.learn_argv(words)
        install_log_filter(vault)
        sys.argv[1:] = redact_argv(sys.argv[1:])  # trackers copy it into their records
        _set_up_logging()
        if os.environ.get("RANK", "0") == "0":  # before anything is refused under a name that was not typed
            for line in run.opening:
                logger.info(line)
        backend = resolve(run.hardware.device, run.hardware.hpu_settings(run.given, run.training.said()))
        sharding = sharding_notes(run)  # of the environment as the launcher left it
        args, precision, lines = make_training_arguments(run, backend, training or {})
        leave_models_whole()
        chosen = backend.attention_implementation(precision)
        asked = run.model.attn_implementation
        attention = chosen.value if asked == "auto" else asked
        session = cls(command, run, words, vault, backend, precision, args, attention)
        session.say(f"device: {backend.name} ({backend.available().reason}), {args.world_size} process(es)")
        session.say(f"precision: {precision.reason}")
        session.say(f"attention: {attention} ({chosen.reason if asked == 'auto' else 'as asked'})")
        alone = started_alone(os.environ)
        for note in (*backend.notes(), *sharding, *run.notes, *lines, *([alone] if alone else [])):
            session.say(note)
        session.checkpoint()  # what cannot be resumed or quantized is refused before anything is read
        session.quantization()
        return session

    # Talking
    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.args.process_index == 0

    def say(self, line: str) -> None:
        """A line to the user, from the main process."""
        if self.is_main:
            logger.info(line)

    # Data
    def splits(self, purpose: Purpose) -> Splits:
        """The data set that the flags name, in canonical rows; the main process reads it first, the others its cache."""
        data = self.run.data
        shares = None if data.data_split is None else parse_data_split(data.data_split)
        source = DataSource(
            dataset_name=data.dataset_name,
            dataset_config_name=data.dataset_config_name,
            train_file=data.train_file,
            validation_file=data.validation_file,
            train_splits=data.train_splits,
            eval_splits=data.eval_splits,
            data_split=shares,
            sft_only_data_path=data.sft_only_data_path,
            data_format=data.data_format,
            prompt_dict_path=data.prompt_dict_path,
            validation_split_percentage=data.validation_split_percentage,
            eval_dataset_size=data.eval_dataset_size,
            max_train_samples=data.max_train_samples,
            max_eval_samples=data.max_eval_samples,
            dataset_seed=data.dataset_seed,
            cache_dir=data.dataset_cache_directory,
            streaming=data.streaming,
            keep_in_memory=data.keep_in_memory,
            token=self.token if isinstance(self.token, str) else None,
            num_proc=data.preprocessing_num_workers,
            task=getattr(data, "task", "completion"),
            max_malformed_fraction=data.max_malformed_fraction,
        )
        if data.sft_only_data_path and purpose != "sft":
            self.say("--sft_only_data_path: no effect here; these sets are for supervised fine-tuning")
        if shares is not None and "validation_split_percentage" in self.run.given:
            self.say(
                "--validation_split_percentage: no effect here; with --data_split a tenth of a share is kept where a set "
                "has no evaluation data"
            )
        with self.main_process_first("reading the data"):
            splits = load_splits(source, purpose)
        for line in splits.report.lines():
            self.say(line)
        if splits.validation is None and self.args.eval_strategy != "no":
            self._without_evaluation()
        return splits

    def _without_evaluation(self) -> None:
        """Evaluations that are only a default are left out where there is nothing to evaluate on.

        Raises:
            UserError: they were asked for.
        """
        if "eval_strategy" in self.run.given:
            raise UserError(
                f"--eval_strategy {self.run.training.eval_strategy}: there is no evaluation data; give --validation_file, "
                "--eval_dataset_size or --validation_split_percentage, or leave it out"
            )
        self.say("there is no evaluation data: nothing is evaluated")
        self.args.eval_strategy = type(self.args.eval_strategy)("no")

    @contextmanager
    def main_process_first(self, what: str) -> Iterator[None]:
        """Around work on the data: the main process does it, the others read its cache.

        `--overwrite_cache`: no cache is read, and each process works for itself.
        """
        caching = datasets.is_caching_enabled()
        if self.run.data.overwrite_cache:
            datasets.disable_caching()
        try:
            with self.args.main_process_first(desc=what):
                yield
        finally:
            if caching:
                datasets.enable_caching()

    def shape_policy(self, lengths: Sequence[int], model: Any) -> ShapePolicy:
        """The backend's, for rows of these `lengths` and within the model's context; told where it fixes the shapes,
        with what that costs."""
        policy = self.backend.shape_policy(lengths)
        context = getattr(model.config, "max_position_embeddings", None)
        if context:
            policy = WithinContext(policy, context)
        if policy.buckets:
            share = padding_share(lengths, policy)
            widths = ", ".join(str(width) for width in policy.buckets)
            self.say(
                f"shapes: batches are padded to {widths} tokens; {share:.0%} of each row for itself is padding"
            )
        return policy

    # Models
    @property
    def token(self) -> str | bool | None:
        return self.run.model.hub_token()

    def load_options(self, flag: str, *, trained: bool) -> LoadOptions:
        """How to load a model; weights that train are fp32, frozen ones what `--torch_dtype` or the hardware says."""
        model, peft = self.run.model, self.run.peft
        frozen = not trained or peft.peft is not None
        asked = _DTYPES.get(model.torch_dtype, self.precision.frozen_dtype)
        wanted = self.precision.autocast != "no" or "torch_dtype" in self.run.given
        dtype = asked if frozen and wanted else torch.float32
        return LoadOptions(
            flag=flag,
            revision=model.model_revision if flag in (*_MODEL_FLAGS, "--tokenizer_name") else "main",
            cache_dir=model.cache_dir,
            token=self.token,
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            attention=self.attention,
            config_name=model.config_name if flag in _MODEL_FLAGS else None,
        )

    def quantization(self) -> Any:
        """How the flags want the base model quantized; None where they do not."""
        model = self.run.model
        bits = model.quantization_bits()
        if bits is None:
            return None
        return self.backend.quantization_config(bits, model.double_quant, model.quant_type, self.precision)

    def quantized(self, options: LoadOptions) -> LoadOptions:
        """The same with a quantized base, where the flags ask for it."""
        config = self.quantization()
        if config is None:
            return options
        return replace(options, quantization=config, device_map={"": self.args.device})

    def check_models(self, **names: str | None) -> None:
        """Refuse paths that hold no model (`tokenizer_name`: no tokenizer), and layers to be gathered that no model has,
        before anything loads."""
        for flag, name in names.items():
            if name is not None:
                check = check_tokenizer_path if flag == "tokenizer_name" else check_model_path
                check(name, f"--{flag}")
        plan = fsdp_plan(self.run)
        if plan is not None and plan.layer_classes:
            models = [
                (flag, name) for flag, name in names.items() if name and flag.endswith(("model_name", "path"))
            ]
            options = [self.load_options(f"--{flag}", trained=True) for flag, _ in models]
            check_layer_classes(plan.layer_classes, zip((name for _, name in models), options, strict=True))

    def tokenizer(self, name: str, flag: str) -> Any:
        """The tokenizer of `name`."""
        options = self.load_options(flag, trained=False)
        return load_tokenizer(name, options, use_fast=self.run.model.use_fast_tokenizer)

    def with_adapter(
        self, model: Any, task_type: str, peft: PeftArguments | None = None, config: Any = None
    ) -> Any:
        """`model` with the adapter that `--peft` (or `peft`, or PEFT's `config`) names; all its weights train where it
        names none."""
        if self.run.model.dropout is not None:
            set_dropout(model, self.run.model.dropout)
        config = config or self.adapter_config(task_type, peft)
        if config is not None:
            model = attach_adapter(model, config, gradient_checkpointing=self.args.gradient_checkpointing)
        if self.args.do_train:
            check_trains(model, model.name_or_path)
        return model

    def adapter_config(self, task_type: str, peft: PeftArguments | None = None) -> Any:
        """PEFT's configuration of the adapter that `--peft` (or `peft`) names, or None."""
        return configured_adapter(peft or self.run.peft, task_type)

    # Running
    @contextmanager
    def run_directory(self) -> Iterator[RunDirectory]:
        """The output directory, claimed; its report is written again once the run has ended.

        Refused where it holds something that no flag allows to touch.
        """
        with RunDirectory.create(
            self.args.output_dir,
            command=["rlhf-hw", self.command, *self.argv],
            config=self.run.config_dict(),
            secrets=self.vault,
            backend={**self.backend.describe(), "precision": self.precision.reason},
            is_main_process=self.is_main,
            resume=self.wants_resume,
            overwrite=self.run.training.overwrite_output_dir,
        ) as run:
            yield run
        RunDirectoryCallback(run).report()

    @property
    def wants_resume(self) -> bool:
        """Whether `--resume_from_checkpoint` was given, as a switch or with a directory."""
        said = self.run.training.resume_from_checkpoint
        return said is not None and str(said).lower() not in ("false", "no", "0")

    def checkpoint(self) -> str | None:
        """The checkpoint to resume from: the one named, or the last in the output directory."""
        if not self.wants_resume:
            return None
        said = str(self.run.training.resume_from_checkpoint)
        if said.lower() not in ("true", "yes", "1", "last", "latest"):
            if not (Path(said) / "trainer_state.json").is_file():
                raise UserError(
                    f"--resume_from_checkpoint: {said} is no checkpoint directory; check the path"
                )
            return said
        found = last_checkpoint(Path(self.args.output_dir))
        if found is None:
            raise UserError(
                f"--resume_from_checkpoint: {self.args.output_dir} holds no checkpoint; leave the flag out to start anew"
            )
        return str(found)

    def train(self, trainer: Any, run: RunDirectory) -> dict[str, float]:
        """Train (or only evaluate), save, and leave the report. Returns the last evaluation's metrics."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(StageProgress())
        trainer.add_callback(RunDirectoryCallback(run))
        trained, total = count_parameters(trainer.model)
        self.say(f"training {trained:,} of {total:,} parameters")
        for model in decoders(trainer.model) if self.args.gradient_checkpointing else ():
            if not can_recompute(model):
                self.say(
                    f"--gradient_checkpointing: no effect, the layers of {type(without_adapters(model)).__name__} recompute "
                    "nothing; memory is as without it"
                )
        checkpoint = self.checkpoint()
        if (
            self.args.do_train
            and self.args.do_eval
            and trainer.eval_dataset is not None
            and checkpoint is None
        ):
            if is_sharded(self.args):
                evaluate_at_the_start(trainer, self.say_metrics)
            else:
                self.say_metrics("before training", trainer.evaluate())
        if checkpoint is not None and not self.args.do_train:
            trainer.load_checkpoint_weights(checkpoint)
        if self.args.do_train:
            self.backend.reset_peak_memory()
            if checkpoint is not None and nothing_left(checkpoint, self.args.max_steps):
                self.say(
                    f"nothing is left to train: {checkpoint} is at step {steps_of(checkpoint)}, and {self.args.max_steps} "
                    "were asked for"
                )
            trainer.train(resume_from_checkpoint=checkpoint)
            trainer.save_model()
            memory = self.backend.memory_statistics()
            self.say(f"peak memory: {memory.peak / 2**30:.2f} GiB of {memory.limit / 2**30:.0f} GiB")
        metrics: dict[str, float] = {}
        if self.args.do_eval and trainer.eval_dataset is not None:
            metrics = trainer.evaluate()
            self.say_metrics("after training" if self.args.do_train else "evaluation", metrics)
        self.say(f"results in {run.path}: report.html, metrics.jsonl, plots/")
        return metrics

    def say_metrics(self, when: str, metrics: dict[str, float]) -> None:
        """An evaluation as one line."""
        shown = {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")}
        shown = {k: v for k, v in shown.items() if not k.endswith(("_per_second", "runtime", "_time"))}
        self.say(f"{when}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))


def _set_up_logging() -> None:
    """Our lines go to standard error, one a line, without decoration."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("rlhf_hw | %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
