"""The commands of seed 001 (DeepSpeed-Chat in its older spellings), as its page has them."""

from __future__ import annotations

from commands import SeedCommand

SFT = SeedCommand(
    "001 step 1",
    "sft",
    "deepspeed-chat",
    "deepspeed --num_gpus 1 training/step1_supervised_finetuning/main.py --model_name_or_path facebook/opt-1.3b "
    "--per_device_train_batch_size 8 --per_device_eval_batch_size 8 --gradient_accumulation_steps 8 --lora_dim 128 "
    "--zero_stage 0 --data_path Dahoas/rm-static Dahoas/full-hh-rlhf Dahoas/synthetic-instruct-gptj-pairwise "
    "yitingxie/rlhf-reward-datasets --num_train_epochs 5 --deepspeed --output_dir ./output/actor-models/1.3b "
    "&> ./output/actor-models/1.3b/training.log",
    {
        "model.model_name_or_path": "facebook/opt-1.3b",
        "data.dataset_name": [
            "Dahoas/rm-static",
            "Dahoas/full-hh-rlhf",
            "Dahoas/synthetic-instruct-gptj-pairwise",
            "yitingxie/rlhf-reward-datasets",
        ],
        "data.data_split": "2,4,4",
        "data.max_seq_length": 512,
        "data.train_on_inputs": True,
        "training.per_device_train_batch_size": 8,
        "training.per_device_eval_batch_size": 8,
        "training.gradient_accumulation_steps": 8,
        "training.num_train_epochs": 5,
        "training.learning_rate": 1e-3,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 0,
        "training.seed": 1234,
        "training.eval_strategy": "epoch",
        "training.output_dir": "./output/actor-models/1.3b",
        "peft.peft": "lora",
        "peft.lora_rank": 128,
        "peft.lora_alpha": 1,
        "peft.lora_all_linear": True,
        "sharding.zero_stage": 0,
    },
    ("dialect: deepspeed-chat", "--lora_dim 128: here --peft lora --lora_rank 128"),
)
REWARD = SeedCommand(
    "001 step 2",
    "reward",
    "deepspeed-chat",
    "deepspeed --num_gpus 1 training/step2_reward_model_finetuning/main.py --model_name_or_path facebook/opt-350m "
    "--per_device_train_batch_size 8 --per_device_eval_batch_size 8  --num_padding_at_beginning 1 "
    "--weight_decay 0.1 --disable_dropout --gradient_accumulation_steps 4 --zero_stage 0 --deepspeed "
    "--output_dir ./output/reward-models/350m &> ./output/reward-models/350m/training.log",
    {
        "model.model_name_or_path": "facebook/opt-350m",
        "model.dropout": 0.0,
        "data.dataset_name": ["Dahoas/rm-static"],
        "data.max_length": 512,
        "stage.rm_loss": "tokenwise",
        "stage.num_padding_at_beginning": 1,
        "training.per_device_train_batch_size": 8,
        "training.weight_decay": 0.1,
        "training.gradient_accumulation_steps": 4,
        "training.learning_rate": 5e-5,
        "training.num_train_epochs": 1,
        "training.output_dir": "./output/reward-models/350m",
        "peft.peft": None,
        "sharding.zero_stage": 0,
    },
)
PPO = SeedCommand(
    "001 step 3",
    "ppo",
    "deepspeed-chat",
    "deepspeed --num_gpus 1 training/step3_rlhf_finetuning/main.py "
    "--actor_model_name_or_path ./output/actor-models/1.3b/ --critic_model_name_or_path ./output/reward-models/350m/ "
    "--actor_zero_stage 0 --critic_zero_stage 0 --num_padding_at_beginning 1 --gradient_accumulation_steps 2 "
    "--deepspeed --actor_lora_dim 128 --enable_hybrid_engine --actor_gradient_checkpointing --disable_actor_dropout "
    "--per_device_train_batch_size 8 --per_device_mini_train_batch_size 8 --output_dir ./output/step3-models/1.3b/ "
    "&> ./output/step3-models/1.3b/training.log",
    {
        "model.model_name_or_path": "./output/actor-models/1.3b/",
        "stage.reward_model_name": "./output/reward-models/350m/",
        "stage.critic_model_name": "./output/reward-models/350m/",
        "data.max_prompt_length": 256,
        "stage.output_max_length": 256,
        "stage.batch_size": 8,
        "stage.mini_batch_size": 8,
        # an optimizer step of 8 x 2 answers takes two rollouts of 8
        "stage.generation_batches": 2,
        "stage.ppo_epochs": 1,
        "stage.init_kl_coef": 0.1,
        "stage.critic_learning_rate": 5e-6,
        "stage.critic_lora_rank": 0,
        "stage.min_answer_tokens": 2,
        "training.learning_rate": 9.65e-6,
        "training.gradient_accumulation_steps": 2,
        "training.gradient_checkpointing": True,
        "training.output_dir": "./output/step3-models/1.3b/",
        "peft.peft": "lora",
        "peft.lora_rank": 128,
        "peft.lora_alpha": 1,
    },
    ("2 rollouts of 8", "--enable_hybrid_engine: ", "--disable_actor_dropout: "),
)
CHAT = SeedCommand("001 chat", "chat", None, "python inference/chatbot.py --path output/step3-models/actor/")
COMMANDS = [SFT, REWARD, PPO, CHAT]
