"""Contradictions among settings that need neither device nor model to be found. Each is one line for the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_hw.arguments.data import DataArguments, SFTDataArguments, parse_data_split
from rlhf_hw.arguments.hardware import HardwareArguments
from rlhf_hw.arguments.model import ModelArguments
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sharding import check_sharding
from rlhf_hw.arguments.training import check_training
from rlhf_hw.errors import UserError


def check_run(run: Run) -> None:
    """What every stage asks of its settings.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    check_device(run)
    check_model(run.model, run.peft)
    check_adapter(run.peft)
    if run.peft.peft == "prefix" and run.training.gradient_checkpointing:
        raise UserError(
            "--peft prefix with --gradient_checkpointing: layers that run again do without the cache that the prefix lies in; "
            "leave one out"
        )
    check_data(run.data)
    check_training(run.training)
    check_sharding(run)
    at_least(1, run.training, "gradient_accumulation_steps", "per_device_eval_batch_size")
    at_least(0, run.training, "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps")
    at_least(1, run.hardware, "context_parallel_size", "max_hpu_graphs", "bucket_size")


def check_device(run: Run) -> None:
    """One device, however many flags name it."""
    hardware: HardwareArguments = run.hardware
    if hardware.use_habana and hardware.device != "hpu":
        raise UserError(f"--use_habana: --device {hardware.device} was given too; give one")
    if run.training.use_cpu and hardware.device != "cpu":
        raise UserError(f"--use_cpu: another device ({hardware.device}) was asked for too; give one")


def check_model(model: ModelArguments, peft: PeftArguments) -> None:
    """Quantized weights cannot be trained themselves."""
    if not model.model_name_or_path.strip():
        raise UserError("--model_name_or_path: got nothing, expected a hub name or a directory")
    if model.dropout is not None and not 0 <= model.dropout < 1:
        raise UserError(f"--dropout: got {model.dropout}, expected a number from 0 to below 1")
    if model.load_in_4bit and model.load_in_8bit:
        raise UserError("--load_in_4bit and --load_in_8bit: both are true; give one")
    if model.qlora and model.load_in_8bit and model.bits == 4:
        raise UserError("--qlora: --load_in_8bit says 8 bits and --bits 4; give --qlora --bits 8")
    if model.qlora and peft.peft != "lora":
        raise UserError(f"--qlora: needs --peft lora, found {peft.peft or 'a full fine-tune'}")
    if model.quantization_bits() is not None and peft.peft is None:
        raise UserError(
            f"--load_in_{model.quantization_bits()}bit: quantized weights cannot be trained; give --peft lora"
        )


def check_adapter(peft: PeftArguments) -> None:
    """Sizes of an adapter."""
    at_least(
        1,
        peft,
        "lora_rank",
        "lora_alpha",
        "adapter_layers",
        "adapter_len",
        "num_virtual_tokens",
        "ptun_hidden_size",
    )
    if not 0 <= peft.lora_dropout < 1:
        raise UserError(f"--lora_dropout: got {peft.lora_dropout}, expected a number from 0 to below 1")


def check_data(data: DataArguments) -> None:
    """One source, and files that are there."""
    if data.dataset_name is not None and data.train_file is not None:
        raise UserError("--dataset_name and --train_file: both were given; give one")
    sets_of_sft = data.sft_only_data_path if isinstance(data, SFTDataArguments) else None
    if data.dataset_name is None and data.train_file is None and not sets_of_sft:
        raise UserError("--dataset_name: no data; give a data set's name or directory, or --train_file")
    if data.data_split is not None:
        parse_data_split(data.data_split)
        if data.eval_dataset_size is not None:
            raise UserError(
                "--eval_dataset_size: with --data_split a tenth of a share is kept where a set has no evaluation data; leave it out"
            )
        if data.streaming:
            raise UserError("--data_split: parts a whole set, and --streaming reads its beginning; give one")
    for flag in ("train_file", "validation_file"):
        path = getattr(data, flag)
        if path is not None and not Path(path).expanduser().is_file():
            raise UserError(f"--{flag}: there is no file {path}; check the path")
    if not 0 <= data.validation_split_percentage < 100:
        raise UserError(
            f"--validation_split_percentage: got {data.validation_split_percentage}, expected 0 to 99"
        )
    if not 0 <= data.max_malformed_fraction <= 1:
        raise UserError(f"--max_malformed_fraction: got {data.max_malformed_fraction}, expected 0 to 1")
    at_least(
        1, data, "eval_dataset_size", "max_train_samples", "max_eval_samples", "preprocessing_num_workers"
    )


def at_least(least: float, group: Any, *names: str) -> None:
    """Every named setting that was given is at least `least`."""
    for name in names:
        value = getattr(group, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: got {value}, expected at least {least}")
