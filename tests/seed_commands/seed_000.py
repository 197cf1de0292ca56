"""The commands of seed 000 (alpaca-rlhf), as its page has them; its bootstrap script hands those of training to DeepSpeed."""

from __future__ import annotations

from commands import SeedCommand

LORA_Q_K = ["*q_proj*", "*k_proj*"]
SFT = SeedCommand(
    "000 step 1",
    "sft",
    "alpaca-rlhf",
    "--num_gpus 2 /tmp/pycharm_project_227/alpaca_rlhf/deepspeed_chat/training/step1_supervised_finetuning/main.py "
    "--sft_only_data_path MultiTurnAlpaca --data_output_path /root/autodl-tmp/rlhf/tmp/ "
    "--model_name_or_path decapoda-research/llama-7b-hf --per_device_train_batch_size 8 "
    "--per_device_eval_batch_size 8 --max_seq_len 512 --learning_rate 3e-4 --num_train_epochs 1 "
    "--gradient_accumulation_steps 8 --num_warmup_steps 100 --output_dir /root/autodl-tmp/rlhf/actor --lora_dim 8 "
    "--lora_module_name q_proj,k_proj --only_optimize_lora --deepspeed --zero_stage 2",
    {
        "model.model_name_or_path": "decapoda-research/llama-7b-hf",
        "data.dataset_name": ["Dahoas/rm-static"],
        "data.sft_only_data_path": ["MultiTurnAlpaca"],
        "data.data_split": "4,4,2",
        "data.dataset_cache_directory": "/root/autodl-tmp/rlhf/tmp/",
        "data.max_seq_length": 512,
        "data.train_on_inputs": False,
        "training.per_device_train_batch_size": 8,
        "training.per_device_eval_batch_size": 8,
        "training.learning_rate": 3e-4,
        "training.num_train_epochs": 1,
        "training.gradient_accumulation_steps": 8,
        "training.warmup_steps": 100,
        "training.lr_scheduler_type": "cosine",
        "training.weight_decay": 0.0,
        "training.adam_beta2": 0.95,
        "training.seed": 1234,
        "training.output_dir": "/root/autodl-tmp/rlhf/actor",
        "peft.peft": "lora",
        "peft.lora_rank": 8,
        "peft.lora_alpha": 1,
        "peft.lora_dropout": 0.0,
        "peft.lora_target_modules": LORA_Q_K,
        "sharding.zero_stage": 2,
    },
    ("dialect: alpaca-rlhf", "--lora_dim 8: here --peft lora --lora_rank 8", "--only_optimize_lora: "),
)
REWARD = SeedCommand(
    "000 step 2",
    "reward",
    "alpaca-rlhf",
    "--num_gpus 2 /tmp/pycharm_project_227/alpaca_rlhf/deepspeed_chat/training/step2_reward_model_finetuning/main.py "
    "--data_output_path /root/autodl-tmp/rlhf/tmp/ --model_name_or_path decapoda-research/llama-7b-hf "
    "--num_padding_at_beginning 0 --per_device_train_batch_size 4 --per_device_eval_batch_size 64 "
    "--learning_rate 5e-4 --num_train_epochs 1 --gradient_accumulation_steps 1 --num_warmup_steps 0 --zero_stage 2 "
    "--deepspeed --output_dir /root/autodl-tmp/rlhf/critic --lora_dim 8 --lora_module_name q_proj,k_proj "
    "--only_optimize_lora",
    {
        "model.model_name_or_path": "decapoda-research/llama-7b-hf",
        "data.dataset_name": ["Dahoas/rm-static"],
        "data.data_split": "4,4,2",
        "data.max_length": 512,
        "stage.rm_loss": "tokenwise",
        "stage.num_padding_at_beginning": 0,
        "training.per_device_train_batch_size": 4,
        "training.per_device_eval_batch_size": 64,
        "training.learning_rate": 5e-4,
        "training.warmup_steps": 0,
        "training.eval_strategy": "steps",
        "training.eval_steps": 100,
        "training.output_dir": "/root/autodl-tmp/rlhf/critic",
        "peft.peft": "lora",
        "peft.lora_rank": 8,
        "peft.lora_alpha": 1,
        "peft.lora_target_modules": LORA_Q_K,
        "sharding.zero_stage": 2,
    },
)
PPO = SeedCommand(
    "000 step 3",
    "ppo",
    "alpaca-rlhf",
    "--num_gpus 2 /tmp/pycharm_project_227/alpaca_rlhf/deepspeed_chat/training/step3_rlhf_finetuning/main.py "
    "--data_output_path /root/autodl-tmp/rlhf/tmp/ --actor_model_name_or_path /root/autodl-tmp/rlhf/actor/ "
    "--tokenizer_name_or_path decapoda-research/llama-7b-hf --critic_model_name_or_path /root/autodl-tmp/rlhf/critic "
    "--actor_zero_stage 2 --critic_zero_stage 2 --num_padding_at_beginning 0 --per_device_train_batch_size 4 "
    "--per_device_mini_train_batch_size 4 --ppo_epochs 2 --actor_learning_rate 9.65e-6 "
    "--critic_learning_rate 5e-6 --gradient_accumulation_steps 1 --deepspeed --actor_lora_dim 8 "
    "--actor_lora_module_name q_proj --critic_lora_dim 8 --critic_lora_module_name q_proj,k_proj "
    "--only_optimize_lora --output_dir /root/autodl-tmp/rlhf/final",
    {
        "model.model_name_or_path": "/root/autodl-tmp/rlhf/actor/",
        "model.tokenizer_name": "decapoda-research/llama-7b-hf",
        "stage.reward_model_name": "/root/autodl-tmp/rlhf/critic",
        "stage.critic_model_name": "/root/autodl-tmp/rlhf/critic",
        "stage.value_model": "separate",
        "data.dataset_name": ["Dahoas/rm-static"],
        "data.data_split": "4,4,2",
        "data.max_prompt_length": 256,
        "stage.output_max_length": 256,
        "stage.batch_size": 4,
        "stage.mini_batch_size": 4,
        "stage.generation_batches": 1,
        "stage.ppo_epochs": 2,
        "stage.total_epochs": 1,
        "stage.critic_learning_rate": 5e-6,
        "stage.critic_lora_rank": 8,
        "stage.critic_lora_target_modules": LORA_Q_K,
        "stage.init_kl_coef": 0.02,
        "stage.adap_kl_ctrl": False,
        "stage.score_clip": 5.0,
        "stage.normalize_scores": True,
        "stage.whiten_advantages": False,
        "training.learning_rate": 9.65e-6,
        "training.warmup_steps": 100,
        "training.lr_scheduler_type": "cosine",
        "training.gradient_accumulation_steps": 1,
        "training.output_dir": "/root/autodl-tmp/rlhf/final",
        "peft.peft": "lora",
        "peft.lora_rank": 8,
        "peft.lora_alpha": 1,
        "peft.lora_target_modules": ["*q_proj*"],
        "sharding.zero_stage": 2,
        "sharding.critic_zero_stage": 2,
    },
    (
        "dialect: alpaca-rlhf",
        "--per_device_train_batch_size 4: here --batch_size",
        "--critic_model_name_or_path /root/autodl-tmp/rlhf/critic: here --reward_model_name",
    ),
)
CHAT_RLHF = SeedCommand(
    "000 chat, RLHF",
    "chat",
    None,
    "nohup sh run_inference.sh 0 alpaca_rlhf/inference/llama_chatbot_gradio.py "
    "--path /root/autodl-tmp/rlhf/final/actor > rlhf_inference.log 2>&1 &",
)
CHAT_SFT = SeedCommand(
    "000 chat, SFT",
    "chat",
    None,
    "nohup sh run_inference.sh 1 alpaca_rlhf/inference/llama_chatbot_gradio.py "
    "--path /root/autodl-tmp/rlhf/actor > rlhf_inference.log 2>&1 &",
)
COMMANDS = [SFT, REWARD, PPO, CHAT_RLHF, CHAT_SFT]
