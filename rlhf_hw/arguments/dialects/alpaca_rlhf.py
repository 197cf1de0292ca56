"""alpaca-rlhf: a variant of DeepSpeed-Chat's older scripts with differences of its own."""

from __future__ import annotations

from typing import Any

from rlhf_hw.arguments.dialects import deepspeed_chat
from rlhf_hw.arguments.dialects.dialect import Dialect, Flag, same

#: flags that DeepSpeed-Chat got after this variant was made
_LATER = {
    *(
        "dtype",
        "dropout",
        "actor_dropout",
        "critic_dropout",
        "compute_fp32_loss",
        "add_eot_token",
        "eot_token",
    ),
    *("lora_learning_rate", "actor_lora_learning_rate", "critic_lora_learning_rate", "print_loss"),
    *("enable_tensorboard", "tensorboard_path", "enable_mixed_precision_lora", "align_overflow"),
    *("eval_interval", "eval_iters", "print_answers", "print_answers_interval"),
    "offload_reward_model",
    *("enable_test_mode", "test_stop_step", "per_device_generation_batch_size"),
    *("per_device_training_batch_size", "generation_batches"),
}

#: command → flag → what it is
FLAGS: dict[str, dict[str, Flag]] = {
    command: {name: flag for name, flag in flags.items() if name not in _LATER}
    for command, flags in deepspeed_chat.FLAGS.items()
}
FLAGS["ppo"]["tokenizer_name_or_path"] = same("tokenizer_name")

#: command → setting → value
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {
        **deepspeed_chat.DEFAULTS["sft"],
        "data_split": "4,4,2",
        "train_on_inputs": False,
        "long_examples": "truncate_left",
    },
    "reward": {
        **deepspeed_chat.DEFAULTS["reward"],
        "data_split": "4,4,2",
        "eval_strategy": "steps",
        "eval_steps": 100,
    },
    "ppo": {
        **deepspeed_chat.DEFAULTS["ppo"],
        "data_split": "4,4,2",
        "init_kl_coef": 0.02,
        "normalize_scores": True,
        "long_prompts": "truncate_left",
    },
}

#: what its command lines have and DeepSpeed-Chat's have not: several names of LoRA layers, its own data and tokenizer
MARKS: dict[str, dict[str, str]] = {
    "sft": {"sft_only_data_path": "MultiTurnAlpaca", "lora_module_name": ","},
    "reward": {"lora_module_name": ","},
    "ppo": {"tokenizer_name_or_path": "", "actor_lora_module_name": ",", "critic_lora_module_name": ","},
}

DIALECT = Dialect(
    "alpaca-rlhf", "alpaca-rlhf", FLAGS, DEFAULTS, deepspeed_chat.settle, base="deepspeed-chat", marks=MARKS
)
