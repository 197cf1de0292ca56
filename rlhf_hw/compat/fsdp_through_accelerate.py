"""Telling transformers and accelerate of FSDP2, alike on both stacks and on a CPU too.

transformers 4.55 hands FSDP's settings to accelerate through the environment and knows no version of FSDP; 5.x makes
accelerate's plugin itself. And accelerate (1.10, 1.15) leaves FSDP out on a CPU without a word. Retired, the first by
transformers 5 alone, the second by an accelerate that shards on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn

#: says that accelerate's variables came from here, and not from `accelerate launch`
OWN_MARK = "FSDP_SET_BY_RLHF_HW"
_SWITCH = "ACCELERATE_USE_FSDP"


def forget_fsdp() -> None:
    """Take out of the environment what accelerate would read of FSDP."""
    for name in [name for name in os.environ if name.startswith("FSDP_") or name == _SWITCH]:
        del os.environ[name]


def fsdp_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Training arguments with `config` as their `fsdp_config`. The environment is made to say the same."""
    forget_fsdp()
    os.environ.update(
        {
            _SWITCH: "true",
            OWN_MARK: "true",
            "FSDP_VERSION": "2",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_RESHARD_AFTER_FORWARD": str(config["reshard_after_forward"]).lower(),
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        }
    )
    # bf16: operations run in it by the trainer mixin's autocast, accelerate's own would cast value heads
    # true: both versions take it for full_shard, and 5.x calls the word deprecated. `config` says when weights are let go.
    return {"fsdp": True, "fsdp_config": config, "bf16": False}


def take_fsdp(trainer: Any, is_shared: Callable[[nn.Module], bool]) -> None:
    """Let a trainer's accelerator do for FSDP what it does after sharing out: `is_shared` models it takes as they are.

    accelerate would share out by rules that differ between its versions; and given shares, 1.10 does not find the
    optimizer's weights again.
    """
    if not trainer.args.fsdp:
        return
    accelerator = trainer.accelerator
    if not trainer.is_fsdp_enabled:
        _take_on_cpu(accelerator.state)
        trainer.is_fsdp_enabled = True
    prepare = accelerator._prepare_fsdp2

    def prepared(*objects: Any) -> Any:
        models = [found for found in objects if isinstance(found, nn.Module)]
        if not all(is_shared(model) for model in models):
            return prepare(*objects)
        accelerator._models.extend(models)
        return tuple(
            found if isinstance(found, nn.Module) else accelerator._prepare_one(found, first_pass=True)
            for found in objects
        )

    accelerator._prepare_fsdp2 = prepared


def _take_on_cpu(state: Any) -> None:
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        state_dict_type="FULL_STATE_DICT",
        auto_wrap_policy="NO_WRAP",
    )
