"""The flags about sharding: DeepSpeed's and FSDP's, with their contradictions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from transformers.hf_argparser import HfArg

from rlhf_hw.arguments.fsdp import FSDPPlan, launched_with_fsdp, plan_of_the_launch, read_plan
from rlhf_hw.arguments.json_object import json_object
from rlhf_hw.compat.training_flags import OPTIMIZERS
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from rlhf_hw.arguments.run import Run

_OFF = ("", "false", "f", "no", "n", "0", "none")
_BARE = ("true", "t", "yes", "y", "1")
#: those of torch that were seen to train on shares as on whole weights
_FSDP_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


#: sections of DeepSpeed's configuration that are read here → what one looks like
_SECTIONS = {
    "zero_optimization": '{"stage": 2}',
    "bf16": '{"enabled": true}',
    "fp16": '{"enabled": false}',
}


@dataclass(kw_only=True)
class ShardingArguments:
    """What a bare `--deepspeed` means. `--deepspeed FILE.json` takes DeepSpeed's own configuration instead."""

    _argument_group_name = "Sharding (with --deepspeed)"

    zero_stage: Literal[0, 1, 2, 3] | None = HfArg(
        default=None,
        aliases=["--actor_zero_stage"],
        help="With a bare --deepspeed: what the processes share instead of each holding it whole. 0: nothing; 1: the "
        "optimizer's state; 2: the gradients too; 3: the weights too. Not said: 0, as in DeepSpeed-Chat.",
    )
    offload: bool = HfArg(
        default=False,
        help="With a bare --deepspeed and --zero_stage 1 to 3: keep the optimizer's state (stage 3: the weights too) in "
        "the host's memory.",
    )


@dataclass(kw_only=True)
class PPOShardingArguments(ShardingArguments):
    """PPO's further flags about where models lie."""

    critic_zero_stage: Literal[0, 1, 2, 3] | None = HfArg(
        default=None,
        help="Policy and critic have one optimizer here, so there is one stage: the higher of this and --zero_stage.",
    )
    offload_reference_model: bool = HfArg(
        default=False,
        help="Keep a reference model of its own in the host's memory while it is not asked.",
    )
    offload_reward_model: bool = HfArg(
        default=False, help="Keep the reward model in the host's memory while it is not asked."
    )

    def highest(self) -> int | None:
        """The higher of the two stages; None where neither was given."""
        stages = [stage for stage in (self.zero_stage, self.critic_zero_stage) if stage is not None]
        return max(stages, default=None)


def deepspeed_is_bare(said: Any) -> bool:
    """Whether `--deepspeed` is the switch: the configuration is then made of the other flags."""
    return said is True or str(said).strip().lower() in _BARE


def is_off(said: Any) -> bool:
    """Whether `--deepspeed` or `--fsdp` was not given, or with a word that says no."""
    return said is None or said is False or (isinstance(said, str) and said.strip().lower() in _OFF)


def zero_stage(run: Run) -> int | None:
    """The ZeRO stage of a run; None without DeepSpeed."""
    said = run.training.deepspeed
    if is_off(said):
        return None
    if deepspeed_is_bare(said):
        return _stage_of(run.sharding) or 0
    stage: int = read_config(said).get("zero_optimization", {}).get("stage", 0)
    return stage


def fsdp_plan(run: Run) -> FSDPPlan | None:
    """How FSDP shares out the model of a run: as its flags say, or else its launch; None without FSDP.

    Raises:
        UserError: a setting that there is not, or that cannot be followed.
    """
    training = run.training
    if is_off(training.fsdp):
        return plan_of_the_launch() if launched_with_fsdp() else None
    return read_plan(
        training.fsdp,
        training.fsdp_config,
        min_num_params=training.fsdp_min_num_params,
        layer_class=training.fsdp_transformer_layer_cls_to_wrap,
    )


def _stage_of(sharding: ShardingArguments) -> int | None:
    return sharding.highest() if isinstance(sharding, PPOShardingArguments) else sharding.zero_stage


def read_config(said: Any) -> dict[str, Any]:
    """The DeepSpeed configuration that `--deepspeed` names or holds.

    Raises:
        UserError: there is no such file, no JSON object in it, or a section of another kind than is read here.
    """
    otherwise = "give a DeepSpeed configuration, or the bare switch with --zero_stage"
    config = said if isinstance(said, dict) else json_object(str(said), "--deepspeed", otherwise)
    for name, example in _SECTIONS.items():
        if not isinstance(config.get(name, {}), dict):
            raise UserError(f"--deepspeed: {name} is {config[name]!r}, expected an object such as {example}")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:
        raise UserError(f"--deepspeed: zero_optimization.stage is {stage!r}, expected 0, 1, 2 or 3")
    return config


def deepspeed_config(run: Run, autocast: str) -> dict[str, Any] | None:
    """The DeepSpeed configuration of a run; None without `--deepspeed`. "auto" is filled in by transformers.

    `autocast` ("bf16", "fp16" or "no") is the precision of the run. It is the same as without DeepSpeed: trained weights
    in fp32 (frozen ones as loaded), operations in bf16 by torch's autocast.

    Raises:
        UserError: the configuration wants another precision than the run has, or fp16.
    """
    said = run.training.deepspeed
    if is_off(said):
        return None
    if not deepspeed_is_bare(said):
        return _in_precision(completed(read_config(said)), autocast)
    stage = zero_stage(run) or 0
    zero: dict[str, Any] = {"stage": stage}
    if run.sharding.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's own: DeepSpeed's is compiled when first used
    }
    return _in_precision(completed(config), autocast)


def _in_precision(config: dict[str, Any], autocast: str) -> dict[str, Any]:
    """With the precision of the run: DeepSpeed's own bf16 would cast value heads and what is saved."""
    wanted = {name: config.get(name, {}).get("enabled", "auto") for name in ("bf16", "fp16")}
    if autocast == "fp16" or wanted["fp16"] is True:
        raise UserError("--deepspeed: fp16 is not supported with it; use bf16, or leave --deepspeed out")
    if wanted["bf16"] not in ("auto", autocast == "bf16"):
        flag = "--bf16" if wanted["bf16"] else "--bf16 False"
        raise UserError(
            f"--deepspeed: its configuration sets bf16.enabled to {wanted['bf16']}; give {flag} as well"
        )
    config = {**config, "bf16": {"enabled": False}, "fp16": {"enabled": False}}
    if autocast == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """With what saving whole weights and the training arguments ask for, where the configuration leaves it out."""
    config = {**config, "zero_optimization": dict(config.get("zero_optimization", {}))}
    if config["zero_optimization"].get("stage") == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        config.setdefault(name, "auto")
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("fp16", {"enabled": False})  # left out, transformers 4 takes it for on
    return config


#: False while a run is only asked about: that needs no DeepSpeed
_wants_deepspeed = ContextVar("wants_deepspeed", default=True)


@contextmanager
def without_deepspeed_installed() -> Iterator[None]:
    """Inside, flags of DeepSpeed are good where it is not installed."""
    before = _wants_deepspeed.set(False)
    try:
        yield
    finally:
        _wants_deepspeed.reset(before)


def check_sharding(run: Run) -> None:
    """Contradictions among the flags about sharding, and what cannot be sharded.

    Raises:
        UserError: names the flag, what was found, what to do.
    """
    training, sharding = run.training, run.sharding
    deepspeed, plan = not is_off(training.deepspeed), fsdp_plan(run)
    fsdp = plan is not None
    _check_launcher()
    if deepspeed and fsdp:
        raise UserError("--fsdp and --deepspeed: both were given, and each would shard the weights; give one")
    bare = deepspeed and deepspeed_is_bare(training.deepspeed)
    for name in ("zero_stage", "critic_zero_stage", "offload"):
        if name not in run.given or bare or not getattr(sharding, name):
            continue
        if deepspeed:
            raise UserError(
                f"--{name}: the configuration that --deepspeed names decides; leave one of them out"
            )
        raise UserError(f"--{name}: acts with --deepspeed only; give that too, or leave it out")
    _check_waiting(run)
    if not deepspeed and not fsdp:
        return
    if deepspeed:
        _check_deepspeed(run)
    else:
        _check_fsdp(run)
    _check_graphs(run, "DeepSpeed" if deepspeed else "FSDP")
    if getattr(run.stage, "enable_ema", False):
        raise UserError(
            f"--enable_ema: weights that --{'deepspeed' if deepspeed else 'fsdp'} shares out cannot be averaged; leave one out"
        )
    _check_whole(run, "--fsdp" if fsdp else "--zero_stage 3", shards_weights=fsdp or zero_stage(run) == 3)
    if not training.do_train:
        raise UserError(
            f"--{'fsdp' if fsdp else 'deepspeed'}: shards what training holds, and nothing is trained; leave it out"
        )


def _check_waiting(run: Run) -> None:
    """A graph goes on reading a model's weights where they were when it was recorded."""
    if not (run.hardware.use_hpu_graphs or run.hardware.use_hpu_graphs_for_inference):
        return
    for name in ("offload_reference_model", "offload_reward_model"):
        if getattr(run.sharding, name, False):
            raise UserError(
                f"--{name}: HPU graphs keep a model's weights where they were; leave it or --use_hpu_graphs_for_inference out"
            )


def _check_fsdp(run: Run) -> None:
    if run.training.fp16:
        raise UserError("--fsdp: fp16 is not supported with it; use bf16, or leave --fsdp out")
    optimizer = OPTIMIZERS.get(run.training.optim, run.training.optim)
    if optimizer not in _FSDP_OPTIMIZERS or run.training.adafactor:
        found = "adafactor" if run.training.adafactor else optimizer
        raise UserError(
            f"--optim {found}: it was never tried on shares of weights; with --fsdp use one of {', '.join(_FSDP_OPTIMIZERS)}"
        )


def _check_graphs(run: Run, what: str) -> None:
    for name in ("use_hpu_graphs", "use_hpu_graphs_for_inference", "use_hpu_graphs_for_training"):
        if getattr(run.hardware, name, False):
            raise UserError(
                f"--{name}: {what} moves weights and gradients between replays, which was never tried; leave it or "
                f"--{what.lower()} out"
            )


def _check_launcher() -> None:
    """accelerate's own configuration would shard behind the stage's back."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in _BARE:
        raise UserError(
            "accelerate launch with deepspeed: the stages take it from their own flags; launch without, and give --deepspeed"
        )


def _check_deepspeed(run: Run) -> None:
    if _wants_deepspeed.get() and find_spec("deepspeed") is None:
        raise UserError(
            "--deepspeed: DeepSpeed is not installed; pip install --no-build-isolation --no-deps -r "
            "requirements-deepspeed.txt"
        )
    stage = zero_stage(run)
    if run.sharding.offload and not stage:
        raise UserError(
            "--offload: --zero_stage 0 shares nothing that could be kept elsewhere; give 1, 2 or 3"
        )
    said = run.training.deepspeed
    if deepspeed_is_bare(said) or "optimizer" not in read_config(said):
        return
    for name in ("critic_learning_rate", "critic_weight_decay"):
        if getattr(run.stage, name, None) is not None:
            raise UserError(
                f"--{name}: DeepSpeed's own optimizer has one for all weights; leave this out, or the section "
                '"optimizer" of the configuration'
            )


def _check_whole(run: Run, flag: str, *, shards_weights: bool) -> None:
    """What reaches into weights past the modules that hold them cannot be sharded."""
    if not shards_weights:
        return
    if run.model.quantization_bits() is not None:
        raise UserError(
            f"{flag}: quantized weights cannot be sharded; use --deepspeed --zero_stage 2, or leave --qlora out"
        )
    if run.peft.peft not in (None, "lora"):
        raise UserError(
            f"{flag}: --peft {run.peft.peft} reaches into the weights of the base; use --peft lora or --deepspeed --zero_stage 2"
        )
