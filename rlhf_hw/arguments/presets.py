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
        **_Q_AND_K,
        "lora_target_modules": ["*q_proj*"],
        "critic_lora_rank": 8,
        "critic_lora_target_modules": ["*q_proj*", "*k_proj*"],
        "batch_size": 4,
        "mini_batch_size": 4,
        "ppo_epochs": 2,
    },
}
#: what the command on the page of AlpacaFarm's LoRA version passes, in one process: LLaMA-7B
_ALPACA_FARM: Settings = {
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
    }
}


def _preset(defaults: Settings, passed: Settings) -> Settings:
    return {
        command: {name: value for name, value in settings.items() if name not in _THE_USERS}
        | passed.get(command, {})
        for command, settings in defaults.items()
    }


#: preset → command → setting → value
PRESETS: dict[str, Settings] = {
    "intel-neural-chat": _preset(intel.DEFAULTS, {}),
    "deepspeed-chat": _preset(deepspeed_chat.DEFAULTS, {}),
    "alpaca-rlhf": _preset(alpaca_rlhf.DEFAULTS, _ALPACA_RLHF),
    "alpaca-farm-lora": _preset(alpaca_farm.DEFAULTS, _ALPACA_FARM),
}
