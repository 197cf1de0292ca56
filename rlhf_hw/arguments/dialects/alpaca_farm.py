"""AlpacaFarm's rlhf_ppo.py, as changed by its LoRA version."""

from __future__ import annotations

from typing import Any

#: command → setting → value
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {
        "dataset_name": "tatsu-lab/alpaca_farm",
        "dataset_config_name": "alpaca_instructions",
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "adam_epsilon": 1e-5,
        "peft": "none",
        "lora_rank": 8,
        "lora_alpha": 64,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "ppo_epochs": 2,
        "max_prompt_length": 192,
        "output_max_length": 300,
        "temperature": 1.0,
        "init_kl_coef": 0.2,
        "adap_kl_ctrl": False,
        "kl_target": 6.0,
        "gamma": 1.0,
        "lam": 0.95,
        "clip_range": 0.2,
        "clip_range_value": 0.2,
        "vf_coef": 0.1,
        "whiten_rewards": True,
        "whiten_advantages": True,
    },
}
