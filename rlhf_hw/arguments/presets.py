"""`--preset`: the settings with which known systems were trained, as defaults of our own flags.

A preset holds, a command: the defaults of that system's script (`rlhf_hw.arguments.dialects`, so that its own command
line and the preset mean the same), and over them what its documented commands pass. Models, data and paths are the
user's. The parser puts a preset below configuration file and command line; a name that no group has is an error there.
"""

from __future__ import annotations

from typing import Any

from rlhf_hw.arguments.dialects import alpaca_farm, alpaca_rlhf, deepspeed_chat, intel

Settings = dict[str, dict[str, Any]]

#: settings of a script's defaults that are the user's in a preset
_THE_USERS = {
    *("dataset_name", "dataset_config_name", "train_splits", "eval_splits", "data_split", "output_dir"),
}
#: DeepSpeed-Chat's step 3 takes one model for the reward and, as its start, for the value
_VALUE_FROM_REWARD: dict[str, Any] = {"init_value_with_reward": True}
_Q_AND_K: dict[str, Any] = {"peft": "lora", "lora_rank": 8, "lora_target_modules": ["*q_proj*", "*k_proj*"]}

#: what the commands on alpaca-rlhf's page pass, on two A100 80G: LLaMA-7B
_ALPACA_RLHF: Settings = {
    "sft": {
        **_Q_AND_K,
        "learning_rate": 3e-4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "warmup_steps": 100.0,
    },
    "reward": {
        **_Q_AND_K,
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 64,
    },
    "ppo": {
        **_VALUE_FROM_REWARD,
        **_Q_AND_K,
        "lora_target_modules": ["*q_proj*"],
        "critic_lora_rank": 8,
        "critic_lora_target_modules": ["*q_proj*", "*k_proj*"],
        "batch_size": 4,
        "mini_batch_size": 4,
        "ppo_epochs": 2,
    },
}
#: what AlpacaFarm's own sft.sh and reward_modeling.sh pass, to each of eight processes: LLaMA-7B
_EIGHT_PROCESSES: dict[str, Any] = {
    "peft": "none",
    "seed": 42,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 4,
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 10.0,
}
#: these for the first two stages, and what the command on the page of its LoRA version passes, in one process: LLaMA-7B
_ALPACA_FARM: Settings = {
    "sft": {
        **_EIGHT_PROCESSES,
        "max_seq_length": 512,
        "learning_rate": 2e-5,
        "gradient_accumulation_steps": 16,
        "num_train_epochs": 3,
    },
    "reward": {
        **_EIGHT_PROCESSES,
        "max_length": 512,
        "learning_rate": 3e-6,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "rm_loss": "cross_entropy",
    },
    "ppo": {
        "peft": "lora",
        "learning_rate": 1e-5,
        "warmup_steps": 20.0,  # 5 updates
        "batch_size": 16,
        "generation_batches": 16,
        "mini_batch_size": 16,
        "gradient_accumulation_steps": 8,
        "init_kl_coef": 0.02,
        "kl_estimator": "jensen_shannon",
        "save_freq": 20,
    },
}


def _preset(defaults: Settings, passed: Settings) -> Settings:
    return {
        command: {name: value for name, value in defaults.get(command, {}).items() if name not in _THE_USERS}
        | passed.get(command, {})
        for command in ("sft", "reward", "ppo")
    }


#: preset → command → setting → value
PRESETS: dict[str, Settings] = {
    "intel-neural-chat": _preset(intel.DEFAULTS, {}),
    "deepspeed-chat": _preset(deepspeed_chat.DEFAULTS, {"ppo": _VALUE_FROM_REWARD}),
    "alpaca-rlhf": _preset(alpaca_rlhf.DEFAULTS, _ALPACA_RLHF),
    "alpaca-farm-lora": _preset(alpaca_farm.DEFAULTS, _ALPACA_FARM),
}
