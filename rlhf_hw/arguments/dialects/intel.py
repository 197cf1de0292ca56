"""Intel's neural_chat scripts finetune_clm.py, reward_modeling.py and rl_training.py: our own names and defaults."""

from __future__ import annotations

from typing import Any

from rlhf_hw.arguments.dialects.dialect import Dialect, Flag, own, same

#: command → setting → value where the script's default is not ours: the dataclasses themselves hold the scripts' defaults
DEFAULTS: dict[str, dict[str, Any]] = {"sft": {}, "reward": {}, "ppo": {}}

_MODEL = own(
    *("model_name_or_path", "config_name", "tokenizer_name", "cache_dir", "token", "use_fast_tokenizer"),
    *("model_revision", "use_auth_token", "trust_remote_code"),
)
_LORA = own("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_all_linear")

#: command → flag → what it is; the training flags are transformers' own
FLAGS: dict[str, dict[str, Flag]] = {
    "sft": {
        **_MODEL,
        **_LORA,
        **own(
            *("dataset_name", "dataset_config_name", "train_file", "validation_file", "max_train_samples"),
            *("max_eval_samples", "special_tokens", "preprocessing_num_workers", "dataset_cache_directory"),
            *("overwrite_cache", "pad_to_max_length", "keep_in_memory", "dataset_concatenation", "streaming"),
            *("max_seq_length", "validation_split_percentage", "dataset_seed", "max_source_length"),
            *("max_target_length", "num_beams", "eval_dataset_size", "peft", "adapter_layers", "adapter_len"),
            *("num_virtual_tokens", "ptun_hidden_size", "train_on_inputs", "device", "task", "do_lm_eval"),
            *("lm_eval_tasks", "qlora", "double_quant", "quant_type", "bits", "full_finetune"),
        ),
        "evaluation_strategy": same("eval_strategy"),
    },
    "reward": {
        **_MODEL,
        **_LORA,
        **own(
            *("torch_dtype", "load_in_4bit", "dataset_name", "dataset_config_name", "max_length"),
            *("validation_split_percentage", "preprocessing_num_workers"),
        ),
        "hf_access_token": same("token"),
        "evaluation_strategy": same("eval_strategy"),
    },
    "ppo": {
        **_LORA,
        **own(
            *("tokenizer_name", "reward_model_name", "learning_rate", "output_max_length", "mini_batch_size"),
            *("batch_size", "ppo_epochs", "gradient_accumulation_steps", "adafactor", "early_stopping"),
            *("target_kl", "reward_baseline", "batched_gen", "save_freq", "output_dir", "seed", "steps"),
            *("init_kl_coef", "adap_kl_ctrl", "dataset_name", "use_habana"),
        ),
        "model_name": same("model_name_or_path"),
        "log_with": same("report_to"),
        "hf_access_token": same("token"),
    },
}

DIALECT = Dialect("intel", "Intel's neural_chat", FLAGS, DEFAULTS)
