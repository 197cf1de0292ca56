"""DeepSpeed-Chat's main.py of steps 1, 2 and 3."""

from __future__ import annotations

from typing import Any

#: the same in all three scripts. Adam's betas and the clipping of gradients are written into them.
_EVERY_STEP: dict[str, Any] = {
    "dataset_name": "Dahoas/rm-static",
    "dataset_seed": 1234,
    "output_dir": "output",
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "peft": "none",
    "lora_alpha": 1,
    "lora_dropout": 0.0,
    "lora_all_linear": True,
}
_STEPS_1_AND_2: dict[str, Any] = {
    **_EVERY_STEP,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "num_train_epochs": 1,
    "warmup_steps": 0.0,
    "seed": 1234,
    "validation_split_percentage": 10,
    "do_train": True,
    "do_eval": True,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}

#: command → setting → value
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {
        **_STEPS_1_AND_2,
        "learning_rate": 1e-3,
        "max_seq_length": 512,
        "train_on_inputs": True,
    },
    "reward": {
        **_STEPS_1_AND_2,
        "learning_rate": 5e-5,
        "max_length": 512,
    },
    "ppo": {
        **_EVERY_STEP,
        "learning_rate": 9.65e-6,
        "warmup_steps": 100.0,
        "batch_size": 16,
        "mini_batch_size": 16,
        "ppo_epochs": 1,
        "max_prompt_length": 256,
        "output_max_length": 256,
        "value_model": "separate",
        "init_kl_coef": 0.1,
        "adap_kl_ctrl": False,
        "kl_estimator": "kl",
        "score_clip": 5.0,
        "gamma": 1.0,
        "lam": 0.95,
        "clip_range": 0.2,
        "clip_range_value": 0.2,
        "whiten_rewards": False,
        "whiten_advantages": False,
    },
}
