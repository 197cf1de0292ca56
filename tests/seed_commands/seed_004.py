"""The commands of seed 004 (simple-rlhf), and those behind the scripts that it runs: DeepSpeed-Chat's, in mixed spellings."""

from __future__ import annotations

from commands import SeedCommand

SFT = SeedCommand(
    "004 run_chinese.sh",
    "sft",
    "deepspeed-chat",
    "deepspeed --num_gpus 2 main.py --model_name_or_path ../../Atom-7B --data_path ../../rm-static-zh "
    "--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --gradient_accumulation_steps 8 --lora_dim 8 "
    "--lora_module_name layers. --only_optimize_lora --num_train_epochs 1 --gradient_checkpointing "
    "--zero_stage $ZERO_STAGE --enable_tensorboard --deepspeed --output_dir $OUTPUT &> $OUTPUT/training.log",
    {
        "model.model_name_or_path": "../../Atom-7B",
        "data.dataset_name": ["../../rm-static-zh"],
        "data.train_on_inputs": True,
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 8,
        "training.gradient_checkpointing": True,
        "training.report_to": ["tensorboard"],
        "training.logging_dir": "step1_tensorboard",
        "training.output_dir": "./output",
        "peft.peft": "lora",
        "peft.lora_rank": 8,
        "peft.lora_target_modules": ["*layers.*"],
        "sharding.zero_stage": 3,
    },
    ("dialect: deepspeed-chat", "--enable_tensorboard true: here --report_to tensorboard"),
    {"ZERO_STAGE": "3", "OUTPUT": "./output"},
)
REWARD = SeedCommand(
    "004 run_350m.sh",
    "reward",
    "deepspeed-chat",
    "deepspeed --num_gpus 1 main.py --model_name_or_path facebook/opt-350m --num_padding_at_beginning 1 "
    "--weight_decay 0.1 --disable_dropout --gradient_accumulation_steps 4 --zero_stage $ZERO_STAGE "
    "--enable_tensorboard --tensorboard_path $OUTPUT --deepspeed --output_dir $OUTPUT &> $OUTPUT/training.log",
    {
        "model.dropout": 0.0,
        "stage.rm_loss": "tokenwise",
        "training.weight_decay": 0.1,
        "training.per_device_train_batch_size": 16,
        "training.gradient_accumulation_steps": 4,
        "training.report_to": ["tensorboard"],
        "training.logging_dir": "./output",
        "training.output_dir": "./output",
        "peft.peft": None,
    },
    ("dialect: deepspeed-chat",),
    {"ZERO_STAGE": "0", "OUTPUT": "./output"},
)
PPO = SeedCommand(
    "004 run_1.3b.sh",
    "ppo",
    "deepspeed-chat",
    "deepspeed --num_gpus 2 main.py --actor_model_name_or_path $ACTOR_MODEL_PATH "
    "--critic_model_name_or_path $CRITIC_MODEL_PATH --per_device_generation_batch_size 4 "
    "--per_device_training_batch_size 4 --enable_tensorboard --actor_zero_stage $ACTOR_ZERO_STAGE "
    "--critic_zero_stage $CRITIC_ZERO_STAGE --num_padding_at_beginning 1 --gradient_accumulation_steps 2 --deepspeed "
    "--actor_lora_dim 128 --enable_hybrid_engine --actor_gradient_checkpointing --disable_actor_dropout "
    "--output_dir $OUTPUT &> $OUTPUT/training.log",
    {
        "model.model_name_or_path": "../step1_supervised_finetuning/output/",
        "stage.reward_model_name": "../step2_reward_model_finetuning/output/",
        "stage.critic_model_name": "../step2_reward_model_finetuning/output/",
        "stage.batch_size": 4,
        "stage.mini_batch_size": 4,
        "stage.generation_batches": 2,
        "training.gradient_checkpointing": True,
        "training.logging_dir": "step3_tensorboard",
        "peft.lora_rank": 128,
        "peft.lora_alpha": 1,
    },
    ("dialect: deepspeed-chat", "--enable_hybrid_engine: "),
    {
        "ACTOR_MODEL_PATH": "../step1_supervised_finetuning/output/",
        "CRITIC_MODEL_PATH": "../step2_reward_model_finetuning/output/",
        "ACTOR_ZERO_STAGE": "0",
        "CRITIC_ZERO_STAGE": "0",
        "OUTPUT": "./output",
    },
)
TRAIN = SeedCommand(
    "004 train.py, 1.3b",
    "train",
    None,
    "python train.py --actor-model facebook/opt-1.3b --reward-model facebook/opt-350m --deployment-type single_gpu",
)
TRAIN_13B = SeedCommand(
    "004 train.py, 13b",
    "train",
    None,
    "python train.py --actor-model facebook/opt-13b --reward-model facebook/opt-350m --deployment-type single_node",
)
PROMPTS = SeedCommand(
    "004 run_prompt.sh",
    "compare",
    None,
    "python prompt_eval.py --model_name_or_path_baseline ../../opt-1.3b --model_name_or_path_finetune output",
)
SCORES = SeedCommand("004 run_eval.sh", "score", None, "python  rw_eval.py --model_name_or_path output")
CHAT = SeedCommand(
    "004 chat", "chat", None, "python chat.py --path training/step3_rlhf_finetuning/output/actor/"
)
COMMANDS = [TRAIN, TRAIN_13B, SFT, PROMPTS, REWARD, SCORES, PPO, CHAT]
