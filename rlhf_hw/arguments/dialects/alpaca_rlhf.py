"""alpaca-rlhf: a fork of DeepSpeed-Chat's older scripts with differences of its own."""

from __future__ import annotations

from typing import Any

from rlhf_hw.arguments.dialects import deepspeed_chat

#: command → setting → value
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {**deepspeed_chat.DEFAULTS["sft"], "train_on_inputs": False},
    "reward": {
        **deepspeed_chat.DEFAULTS["reward"],
        "eval_strategy": "steps",
        "eval_steps": 100,
    },
    "ppo": {**deepspeed_chat.DEFAULTS["ppo"], "init_kl_coef": 0.02, "normalize_scores": True},
}
