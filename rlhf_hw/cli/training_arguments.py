"""From what the flags say, and what the hardware allows, to the training arguments of the backend's own class."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

from backends import Backend, Precision
from backends.base import BackendError
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.training import accepted_fields, training_environment, training_kwargs
from rlhf_hw.cli.sharding import check_configuration, sharding_arguments
from rlhf_hw.compat.training_flags import groups_by_length, length_grouping
from rlhf_hw.errors import UserError
from rlhf_hw.models.fused_kernels import check_kernel_config


def make_training_arguments(
    run: Run, backend: Backend, training: dict[str, Any]
) -> tuple[Any, Precision, list[str]]:
    """(the arguments, the precision they train in, lines on what does not act as given).

    Later ones win: the backend's defaults, the flags, what the backend settles, the stage's own `training`, sharding.

    Raises:
        BackendError: the backend cannot follow a flag, or a library that a flag needs is missing.
        UserError: flags that contradict each other.
    """
    said = run.training.said()
    hardware = run.hardware.training_arguments(run.given)
    _refuse(backend, {**said, **hardware})
    hardware = {name: value for name, value in hardware.items() if name not in backend.own_settings()}
    precision = backend.precision(said.get("bf16"), said.get("fp16"))
    accepted = accepted_fields(backend.training_arguments_class)
    kwargs, lines = training_kwargs(run.training, accepted)
    os.environ.update(training_environment(run.training, accepted))
    kwargs |= {name: value for name, value in hardware.items() if name in accepted}
    idle = sorted(set(hardware) - accepted)
    if idle:
        lines = [f"without effect here: {', '.join('--' + name for name in idle)}", *lines]
    kwargs = _over(backend.training_argument_defaults(), kwargs)
    if run.ragged_batches and backend.groups_by_length:
        kwargs = length_grouping(True, accepted) | kwargs
    kwargs |= {"bf16": precision.autocast == "bf16", "fp16": precision.autocast == "fp16"}
    if "attn_implementation" in accepted and run.model.attn_implementation != "auto":
        kwargs["attn_implementation"] = run.model.attn_implementation
    kwargs.setdefault("ddp_find_unused_parameters", False)
    kwargs.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    kwargs |= backend.training_argument_overrides() | training
    for name in ("fsdp", "fsdp_config"):
        kwargs.pop(name, None)
    kwargs |= sharding_arguments(run, backend, precision)
    if kwargs.get("eval_strategy", "no") == "no":
        kwargs.pop("load_best_model_at_end", None)
    if kwargs.get("use_liger_kernel"):
        check_kernel_config(kwargs.get("liger_kernel_config"))
    _check_trackers(kwargs.get("report_to"))
    # It would decide where neither bf16 nor fp16 is asked for: a launcher's, or an earlier run's of this process.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    args = _of_its_class(backend, kwargs)
    check_configuration(args)
    if run.ragged_batches and groups_by_length(args):
        lines = [
            "batches: examples of like length together; --group_by_length False draws them at random",
            *lines,
        ]
    return args, precision, lines


def _over(defaults: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What was said, and else the defaults; of a JSON object too what was not said of it."""
    found = defaults | said
    for name, default in defaults.items():
        value = found[name]
        if isinstance(default, dict) and isinstance(value, str):
            found[name] = json.dumps(
                default | json.loads(value)
            )  # transformers reads more than JSON out of a text
        elif isinstance(default, dict) and isinstance(value, dict):
            found[name] = default | value
    return found


def _refuse(backend: Backend, said: dict[str, Any]) -> None:
    """Flags that the backend cannot follow."""
    for name, reason in backend.refused_training_arguments().items():
        if said.get(name):
            raise BackendError(f"--{name}: {reason}")


def _check_trackers(report_to: Any) -> None:
    """Trackers that are asked for must be installed, or the run would end after its first log line."""
    from transformers.integrations import get_available_reporting_integrations

    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    available = get_available_reporting_integrations()
    for name in names:
        if name not in ("none", "all", *available):
            raise UserError(
                f"--report_to (--log_with) {name}: it is not installed here; pip install {name}, or leave the flag out "
                "(metrics.jsonl, plots and the report are written in any case)"
            )


def _of_its_class(backend: Backend, kwargs: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return backend.training_arguments_class(**kwargs)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"training flags: {str(error).splitlines()[0]}") from error
    except ImportError as error:
        raise BackendError(f"training flags: {str(error).splitlines()[0]}") from error
