"""TrainingArguments' fields as flags, the same on every transformers, with the flags older versions had.

Commands written for transformers 4.34 to 4.55 carry flags that transformers 5 dropped. A flag that only changed
its name is a second spelling of the present one (`RENAMED`). The others stand in `OLDER`, each with its present
meaning or the line that says why none is left. What is in these tables means the same on both stacks; the
branches on `accepted` are retired with optimum-habana's stack (transformers 4.55), the tables never.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from rlhf_hw.errors import UserError

#: present name → spellings that meant the same
RENAMED: dict[str, list[str]] = {
    "eval_strategy": ["--evaluation_strategy"],
    "use_cpu": ["--no_cuda"],
    "hub_token": ["--push_to_hub_token"],
    "hub_model_id": ["--push_to_hub_model_id"],
    "per_device_train_batch_size": ["--per_gpu_train_batch_size"],
    "per_device_eval_batch_size": ["--per_gpu_eval_batch_size"],
    "torch_compile_backend": ["--torchdynamo"],
    "gradient_checkpointing": ["--activation_checkpointing"],
    "gradient_checkpointing_kwargs": ["--activation_checkpointing_kwargs"],
}

#: fields that cannot be said on a command line, or that are spellings of another
_LEFT_OUT = {"parallelism_config", *(name[2:] for names in RENAMED.values() for name in names)}

#: credentials: never shown, never passed on to TrainingArguments, which would write them into checkpoints
SECRETS = frozenset({"hub_token"})

#: (type, default) where the installed versions differ, or where transformers' own parser cannot read the type.
#: For bf16 and fp16, None is "not said": the backend then chooses the precision.
_RETYPED: dict[str, tuple[Any, Any]] = {
    "bf16": (bool | None, None),
    "fp16": (bool | None, None),
    "warmup_steps": (float, 0.0),
    "report_to": (list[str], None),
    "debug": (str, ""),
    "gradient_checkpointing": (bool, False),
    "include_num_input_tokens_seen": (bool, False),
    "liger_kernel_config": (dict | str | None, None),
    "lr_scheduler_kwargs": (dict | str | None, None),
    "fsdp": (str | None, None),
}

#: optimizers that were renamed or dropped → what does the same today
OPTIMIZERS = {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}

_OUR_HELP = {
    "output_dir": "Where the trained model, checkpoints, configuration and metrics are written.",
    "do_train": "Train. This is what happens when none of --do_train, --do_eval and --do_predict is given.",
    "do_eval": "Evaluate after training, or alone where --do_train is not given.",
    "do_predict": "No effect here: the stages have no prediction set.",
    "bf16": "Compute in bfloat16. Not said: where the hardware has it, with the reason printed.",
    "fp16": "Compute in float16 with loss scaling. Not on HPU.",
    "report_to": "Trackers to report to, by name (wandb, tensorboard, ...), all, or none.",
    "resume_from_checkpoint": "Continue from this checkpoint directory; bare, or true, from the newest in --output_dir.",
    "optim": "The optimizer. Names that older versions had mean their successors.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, about a fifth slower.",
    "gradient_checkpointing_kwargs": "Options for torch.utils.checkpoint as a JSON object.",
    "use_cpu": "The same as --device cpu.",
    "local_rank": "Taken, as DeepSpeed's launcher puts it in front; which process this is, launchers say in the environment.",
    "deepspeed": "Train with DeepSpeed. Bare: as --zero_stage and --offload say. With a JSON object or the path of one: that "
    'is DeepSpeed\'s configuration, in which "auto" follows the training flags.',
    "fsdp": "Share weights, gradients and optimizer's state by PyTorch's FSDP (docs/sharding.md). Bare: full_shard, which gathers weights "
    "again for the backward pass; shard_grad_op keeps them until it.",
    "hub_token": "Token to push with; written nowhere. Not said: the one models are read with.",
}

# (value, keyword arguments so far, names the installed class takes) → changed keyword arguments, line for the user
Translation = tuple[dict[str, Any], str | None]
Translate = Callable[[Any, dict[str, Any], set[str]], Translation]


@dataclass(frozen=True)
class OlderFlag:
    """A flag of an older transformers: its type, its default, what it means today."""

    type: Any
    default: Any
    help: str
    translate: Translate


def _gone(type_: Any, default: Any, why: str) -> OlderFlag:
    return OlderFlag(type_, default, f"No effect any more: {why}.", lambda value, kwargs, accepted: ({}, why))


def _warmup_ratio(value: float, kwargs: dict[str, Any], accepted: set[str]) -> Translation:
    if not 0 <= value <= 1:
        raise UserError(f"--warmup_ratio: got {value}, expected a number from 0 to 1")
    if kwargs.get("warmup_steps"):
        return {}, "--warmup_steps was given too, and beats it"
    if "warmup_ratio" in accepted:
        return {"warmup_ratio": value}, None
    # transformers 5 reads warmup_steps below 1 as a fraction, so that "all of it" must stay just below
    return {"warmup_steps": min(value, 1 - 1e-9)}, None


def length_grouping(wanted: bool, accepted: set[str]) -> dict[str, Any]:
    """The training argument that batches rows of like length together, or at random."""
    if "group_by_length" in accepted:
        return {"group_by_length": wanted}
    return {"train_sampling_strategy": "group_by_length" if wanted else "random"}


def groups_by_length(training_arguments: Any) -> bool:
    """Whether training arguments of the installed class ask for rows of like length together."""
    strategy = getattr(training_arguments, "train_sampling_strategy", None)
    return strategy == "group_by_length" or bool(getattr(training_arguments, "group_by_length", False))


def _group_by_length(value: bool, kwargs: dict[str, Any], accepted: set[str]) -> Translation:
    strategy = kwargs.get("train_sampling_strategy")
    if strategy is None:
        return length_grouping(value, accepted), None
    if value is not (strategy == "group_by_length"):
        raise UserError(
            f"--group_by_length {value} and --train_sampling_strategy {strategy} contradict each other; give one"
        )
    return {}, None


def _adafactor(value: bool, kwargs: dict[str, Any], accepted: set[str]) -> Translation:
    if not value:
        return {}, None
    if kwargs.get("optim", "adafactor") != "adafactor":
        raise UserError(f"--adafactor: --optim {kwargs['optim']} was given too; give one")
    return {"optim": "adafactor"}, None


def _include_inputs(value: bool, kwargs: dict[str, Any], accepted: set[str]) -> Translation:
    names = list(kwargs.get("include_for_metrics", []))
    return (
        ({"include_for_metrics": [*names, "inputs"]}, None) if value and "inputs" not in names else ({}, None)
    )


def _keep_if_accepted(name: str) -> Translate:
    return lambda value, kwargs, accepted: ({name: value} if name in accepted else {}, None)


def _into(option: str, key: str) -> Translate:
    """Into the JSON object that `--option` is today."""

    def translate(value: Any, kwargs: dict[str, Any], accepted: set[str]) -> Translation:
        held = kwargs.get(option) or {}
        if isinstance(held, str):
            if not held.lstrip().startswith("{"):
                raise UserError(
                    f"--{option}: {held} is a file; put {key} in there instead of on the command line"
                )
            held = json.loads(held)
        return {option: {**held, key: value}}, None

    return translate


def _organization(value: str, kwargs: dict[str, Any], accepted: set[str]) -> Translation:
    name = kwargs.get("hub_model_id") or str(kwargs.get("output_dir", "")).rstrip("/").split("/")[-1]
    return {"hub_model_id": name if "/" in name else f"{value}/{name}"}, None


OLDER: dict[str, OlderFlag] = {
    "overwrite_output_dir": OlderFlag(
        bool,
        False,
        "Train into --output_dir even where a finished run is there already.",
        _keep_if_accepted("overwrite_output_dir"),
    ),
    "warmup_ratio": OlderFlag(
        float, 0.0, "Warm the learning rate up for this fraction of the steps.", _warmup_ratio
    ),
    "group_by_length": OlderFlag(
        bool | None,
        None,
        "Batch examples of like length together. Not said: in SFT and reward modelling, where the device pads.",
        _group_by_length,
    ),
    "logging_dir": OlderFlag(
        str | None,
        None,
        "TensorBoard's directory. Not said: inside --output_dir.",
        _keep_if_accepted("logging_dir"),
    ),
    "adafactor": OlderFlag(bool, False, "The same as --optim adafactor.", _adafactor),
    "include_inputs_for_metrics": OlderFlag(
        bool, False, "The same as --include_for_metrics inputs.", _include_inputs
    ),
    "fsdp_min_num_params": OlderFlag(
        int, 0, "The same as min_num_params in --fsdp_config.", _into("fsdp_config", "min_num_params")
    ),
    "fsdp_transformer_layer_cls_to_wrap": OlderFlag(
        str | None,
        None,
        "The same as transformer_layer_cls_to_wrap in --fsdp_config.",
        _into("fsdp_config", "transformer_layer_cls_to_wrap"),
    ),
    "dispatch_batches": OlderFlag(
        bool | None,
        None,
        "The same as dispatch_batches in --accelerator_config.",
        _into("accelerator_config", "dispatch_batches"),
    ),
    "split_batches": OlderFlag(
        bool | None,
        None,
        "The same as split_batches in --accelerator_config.",
        _into("accelerator_config", "split_batches"),
    ),
    "push_to_hub_organization": OlderFlag(
        str | None, None, "The organization in front of --hub_model_id.", _organization
    ),
    "save_safetensors": _gone(bool, True, "weights are always saved as safetensors"),
    "use_legacy_prediction_loop": _gone(bool, False, "there is one evaluation loop"),
    "past_index": _gone(int, -1, "the models that needed it are gone"),
    "include_tokens_per_second": _gone(bool, False, "every stage measures its throughput"),
    "fp16_backend": _gone(str, "auto", "half precision is PyTorch's own"),
    "half_precision_backend": _gone(str, "auto", "half precision is PyTorch's own"),
    "fp16_opt_level": _gone(str, "O1", "it belonged to Apex, which is no longer used"),
    "use_mps_device": _gone(bool, False, "an Apple GPU is used where there is one"),
    "use_ipex": _gone(bool, False, "PyTorch itself has those optimizations"),
    "jit_mode_eval": _gone(bool, False, "TorchScript is no longer used"),
    "sharded_ddp": _gone(str, "", "FairScale is no longer used"),
    "mp_parameters": _gone(str, "", "it belonged to SageMaker's launcher"),
    "ray_scope": _gone(str | None, "last", "there is no hyperparameter search"),
    "tpu_num_cores": _gone(int | None, None, "the launcher sets the number of processes"),
    "tpu_metrics_debug": _gone(bool, False, "TPUs are not trained on"),
}


@dataclass(frozen=True)
class FlagField:
    """One flag: what a dataclass needs to know of it."""

    name: str
    type: Any
    default: Any
    default_factory: Any
    metadata: dict[str, Any]


def training_fields(training_arguments: type) -> list[FlagField]:
    """The flags for the fields of `training_arguments`, then the older ones, the same whichever version it is."""
    hints = get_type_hints(training_arguments)
    flags = [
        _present(field, hints[field.name])
        for field in dataclasses.fields(training_arguments)
        if field.init and field.name not in _LEFT_OUT and field.name not in OLDER
    ]
    older = [
        FlagField(name, flag.type, flag.default, dataclasses.MISSING, {"help": f"Older flag. {flag.help}"})
        for name, flag in OLDER.items()
    ]
    return flags + older


def _present(field: dataclasses.Field[Any], hint: Any) -> FlagField:
    metadata = {
        key: field.metadata[key] for key in ("help", "choices", "nargs", "const") if key in field.metadata
    }
    if "choices" in metadata:
        metadata["choices"] = list(metadata["choices"])
    if field.name in _OUR_HELP:
        metadata["help"] = _OUR_HELP[field.name]
    if field.name in ("resume_from_checkpoint", "deepspeed", "fsdp"):
        metadata |= {"nargs": "?", "const": "true"}
    if field.name in RENAMED:
        metadata["aliases"] = list(RENAMED[field.name])
    default, factory = field.default, field.default_factory
    if field.name in _RETYPED:
        (hint, default), factory = _RETYPED[field.name], dataclasses.MISSING
    if field.name == "optim":
        hint = str
        metadata["choices"] = sorted({*_optimizer_names(), *OPTIMIZERS})
    return FlagField(field.name, hint, default, factory, metadata)


def _optimizer_names() -> list[str]:
    from transformers.training_args import OptimizerNames

    return [member.value for member in OptimizerNames]


def translate(given: dict[str, Any], accepted: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Keyword arguments for a TrainingArguments class that takes `accepted`, and lines for the user.

    `given` holds the flags whose value matters: those the user gave and those the stage sets. Credentials are
    left out.
    """
    kwargs = {k: v for k, v in given.items() if k not in OLDER and k not in SECRETS}
    notes = []
    optimizer = kwargs.get("optim")
    if optimizer in OPTIMIZERS:
        kwargs["optim"] = OPTIMIZERS[optimizer]
        notes.append(f"--optim {optimizer}: is {OPTIMIZERS[optimizer]} today")
    for name, flag in OLDER.items():
        if name in given and given[name] != flag.default:
            changed, note = flag.translate(given[name], kwargs, accepted)
            kwargs |= changed
            if note:
                notes.append(f"--{name}: no effect; {note}")
    return _as_installed(kwargs, accepted), notes


def _as_installed(kwargs: dict[str, Any], accepted: set[str]) -> dict[str, Any]:
    """Present names and types → those of the installed version."""
    kwargs = dict(kwargs)
    for old, new in (
        ("gradient_checkpointing", "activation_checkpointing"),
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ):
        if new in accepted and old in kwargs:
            kwargs[new] = kwargs.pop(old)
    steps = kwargs.get("warmup_steps")
    if steps is not None and "warmup_ratio" in accepted:
        if 0 < steps < 1:
            kwargs["warmup_ratio"] = kwargs.pop("warmup_steps")
        else:
            kwargs["warmup_steps"] = int(steps)
    for name in ("bf16", "fp16"):
        if name in kwargs and kwargs[name] is None:
            del kwargs[name]
    if isinstance(kwargs.get("liger_kernel_config"), str):
        kwargs["liger_kernel_config"] = json.loads(kwargs["liger_kernel_config"])
    unknown = sorted(set(kwargs) - accepted)
    if unknown:
        raise UserError(f"--{unknown[0]}: the installed transformers has no such setting; leave it out")
    return kwargs


def tensorboard_environment(logging_dir: str | None, accepted: set[str]) -> dict[str, str]:
    """`--logging_dir` as transformers 5 takes it: from an environment variable."""
    return {"TENSORBOARD_LOGGING_DIR": logging_dir} if logging_dir and "logging_dir" not in accepted else {}
