"""Seed 002's commands for Gaudi, as written there; `seed_002.py` makes the place where the names in them exist.

Nothing in a command changes but the number of processes, the access token, the doors' directory and, for PPO, how long
it runs.
"""

from __future__ import annotations

from pathlib import Path

from commands import SeedCommand
from seed_002 import MERGE, MERGE_PPO, Pipeline, make_places

SFT = """
python gaudi_spawn.py \
        --world_size 8 --use_mpi finetune_clm.py \
        --model_name_or_path "meta-llama/Llama-2-7b-chat-hf" \
        --bf16 True \
        --dataset_name "Intel/orca_dpo_pairs" \
        --dataset_concatenation \
        --per_device_train_batch_size 2 \
        --per_device_eval_batch_size 2 \
        --gradient_accumulation_steps 4 \
        --evaluation_strategy "no" \
        --save_strategy "steps" \
        --save_steps 2000 \
        --save_total_limit 1 \
        --learning_rate 1e-4  \
        --logging_steps 1 \
        --do_train \
        --num_train_epochs 3 \
        --overwrite_output_dir \
        --log_level info \
        --output_dir ./llama2_7b_se \
        --peft lora \
        --use_fast_tokenizer false \
        --device "hpu" \
        --use_habana \
        --use_lazy_mode \
        --use_auth_token True
"""
REWARD_SINGLE = """
python3 reward_modeling.py --model_name_or_path meta-llama/Llama-2-7b-hf --output_dir llama2_7b_rm  --log_level info
--num_train_epochs 3 --use_habana --use_lazy_mode --hf_access_token xxxxxx  --logging_steps 1
--per_device_train_batch_size 4
"""
REWARD = """
python ../instruction/gaudi_spawn.py --world_size 8 --use_mpi reward_modeling.py
--model_name_or_path meta-llama/Llama-2-7b-hf --output_dir llama2_7b_rm  --log_level info  --num_train_epochs 3
--use_habana --use_lazy_mode --hf_access_token xxxxxx --ddp_find_unused_parameters True --logging_steps 1
--per_device_train_batch_size 4
"""
_PPO = """
rl_training.py  --model_name=llama2_7b_se --reward_model_name=llama2_7b_rm --adafactor=False
--tokenizer_name=llama2_7b_se --save_freq=100 --output_max_length=128 --batch_size=8 --mini_batch_size=1
--gradient_accumulation_steps=8 --batched_gen=True --ppo_epochs=4 --seed=0 --learning_rate=1.4e-5
--early_stopping=True --output_dir=llama-se-rl-finetune-128-8-8-1.4e-5_adam --hf_access_token xxxxxx --use_habana
"""
PPO_SINGLE = "python3 " + _PPO
PPO = "python3 ../instruction/gaudi_spawn.py --world_size 8 --use_mpi " + _PPO
COMMANDS = [
    SeedCommand("002 SFT, Habana", "sft", None, SFT),
    SeedCommand("002 reward model, Habana, one card", "reward", None, REWARD_SINGLE),
    SeedCommand("002 reward model, Habana", "reward", None, REWARD),
    SeedCommand("002 PPO, Habana, one card", "ppo", None, PPO_SINGLE),
    SeedCommand("002 PPO, Habana", "ppo", None, PPO),
]


def run_pipeline(root: Path, base_model: Path, columns: tuple[str, str]) -> Pipeline:
    """The seed's sections 3, 4 and 5 for Habana in order; what the single cards wrote is moved to `single/`."""
    make_places(root, base_model, columns)
    pipeline = Pipeline(root, ppo_processes=2, on_gaudi=True)
    single = root / "single"
    single.mkdir()
    pipeline.run("sft", SFT, "instruction")
    pipeline.run("merged_sft", MERGE, "rlhf")
    pipeline.run("reward_single", REWARD_SINGLE, "rlhf")
    pipeline.reward.rename(single / "reward")
    pipeline.run("reward", REWARD, "rlhf")
    pipeline.run("ppo_single", PPO_SINGLE.replace("--save_freq=100", "--save_freq=1 --steps 16"), "rlhf")
    pipeline.ppo.rename(single / "ppo")
    pipeline.run("ppo", PPO.replace("--save_freq=100", "--save_freq=1 --steps 32"), "rlhf")
    pipeline.run("merged_ppo", MERGE_PPO, "rlhf")
    return pipeline
