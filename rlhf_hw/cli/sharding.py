"""What DeepSpeed and FSDP need before the training arguments are made, and what a user should know of them."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from transformers import TrainerCallback

from backends import Backend, Precision
from backends.base import local_rank
from rlhf_hw.arguments.fsdp import FSDPPlan, launched_with_fsdp
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sharding import (
    PPOShardingArguments,
    deepspeed_config,
    fsdp_plan,
    is_off,
    zero_stage,
)
from rlhf_hw.compat.fsdp_through_accelerate import OWN_MARK, forget_fsdp, fsdp_arguments
from rlhf_hw.compat.torch_extensions import prepare_extensions
from rlhf_hw.errors import UserError

_SHARED = {
    0: "nothing is shared (stage 0)",
    1: "processes share the optimizer's state (stage 1)",
    2: "processes share the optimizer's state and the gradients (stage 2)",
    3: "processes share the optimizer's state, the gradients and the weights (stage 3)",
}


def sharding_arguments(run: Run, backend: Backend, precision: Precision) -> dict[str, Any]:
    """Training arguments that follow from `--deepspeed` and `--fsdp`; both libraries are told.

    With torch's autocast in DeepSpeed's hands the trainer must not ask for bf16 as well: transformers takes that for
    DeepSpeed's own bf16, which casts the weights.
    """
    plan = fsdp_plan(run)
    if plan is not None:
        return _fsdp_arguments(plan, backend, precision)
    if OWN_MARK in os.environ:
        forget_fsdp()  # of a run before this one, in the same process
    config = deepspeed_config(run, precision.autocast)
    if config is None:
        return {"deepspeed": None}
    os.environ.setdefault("DS_ACCELERATOR", backend.device_type)
    prepare_extensions()
    if "RANK" not in os.environ:
        os.environ.update(_alone())
    os.environ.pop(
        "ACCELERATE_USE_CPU", None
    )  # with it accelerate leaves DeepSpeed out without a word; `use_cpu` stays
    _take_device()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls some of torch's collectives by their older names, once a parameter
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    arguments: dict[str, Any] = {"deepspeed": config}
    if "torch_autocast" in config:
        arguments["bf16"] = False
    return arguments


def _fsdp_arguments(plan: FSDPPlan, backend: Backend, precision: Precision) -> dict[str, Any]:
    if precision.autocast == "fp16":
        raise UserError("--fsdp: fp16 is not supported with it; use bf16, or leave --fsdp out")
    if "RANK" not in os.environ:
        os.environ.update(_alone())
    if backend.device_type != "cpu":
        # as PyTorch does when the model is shared out: "hpu" alone means the current device
        torch.get_device_module(backend.device_type).set_device(local_rank())
    arguments = fsdp_arguments(replace(plan, autocast=precision.autocast).as_config())
    if plan.activation_checkpointing:
        accepted = {field.name for field in fields(backend.training_arguments_class)}
        newer, older = "activation_checkpointing", "gradient_checkpointing"
        arguments[newer if newer in accepted else older] = True
    return {"deepspeed": None, **arguments}


def _fsdp_notes(run: Run, plan: FSDPPlan) -> list[str]:
    notes = [plan.line, *plan.notes]
    if launched_with_fsdp():
        said = "its settings are taken" if is_off(run.training.fsdp) else "--fsdp was given too, and decides"
        notes.insert(0, f"accelerate launch --use_fsdp: {said}")
    return notes


def check_configuration(args: Any) -> None:
    """What DeepSpeed's configuration and the training flags both say must be the same.

    Raises:
        UserError: it is not.
    """
    mismatches = getattr(getattr(args, "hf_deepspeed_config", None), "mismatches", [])
    if mismatches:
        found = "; ".join(
            line.removeprefix("- ds ").replace(" vs hf ", ", the flags ") for line in mismatches
        )
        raise UserError(
            f'--deepspeed: the configuration has {found}; make them the same, or write "auto" there'
        )


def sharding_notes(run: Run) -> list[str]:
    """Lines on what is shared, and on flags that do not act as given."""
    plan, stage = fsdp_plan(run), zero_stage(run)
    if plan is not None:
        return _fsdp_notes(run, plan)
    if stage is None:
        return [
            f"--{name}: no effect without --fsdp"
            for name in ("fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap")
            if getattr(run.training, name)
        ]
    notes = [f"deepspeed: {_SHARED[stage]}"]
    sharding = run.sharding
    if isinstance(sharding, PPOShardingArguments) and sharding.critic_zero_stage is not None:
        actor, critic = sharding.zero_stage or 0, sharding.critic_zero_stage
        if actor != critic:
            notes.append(
                f"--zero_stage {actor} and --critic_zero_stage {critic}: policy and critic have one optimizer; the higher "
                "stage serves both"
            )
    return notes


def is_sharded(args: Any) -> bool:
    """Whether training arguments ask for DeepSpeed or FSDP."""
    return not is_off(args.deepspeed) or bool(args.fsdp)


def _take_device() -> None:
    """Set the current device now, as DeepSpeed does when training begins: "hpu" alone means the current one, and what is
    made before and after must lie on the same."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().set_device(local_rank())


def _alone() -> dict[str, str]:
    """The environment of a launch of one process, which DeepSpeed asks for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def evaluate_at_the_start(trainer: Any, say: Callable[[str, dict[str, float]], None]) -> None:
    """Let training evaluate once it has shared the model out, before its first step: `say` is told."""
    trainer.args.eval_on_start = True
    trainer.add_callback(_EvaluatedAtTheStart(say))


class _EvaluatedAtTheStart(TrainerCallback):
    def __init__(self, say: Callable[[str, dict[str, float]], None]) -> None:
        self.say = say

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0 and metrics:
            self.say("before training", metrics)
