"""The commands of seed 003 (AlpacaFarm's PPO with LoRA), as its page has them."""

from __future__ import annotations

from commands import SeedCommand

PPO = SeedCommand(
    "003 PPO",
    "ppo",
    "alpaca-farm",
    r"""CUDA_VISIBLE_DEVICES=0,1 python examples/rlhf_ppo.py \
  --run_name "${run_name}" \
  --step_per_device_batch_size 16 \
  --rollout_per_device_batch_size 16 \
  --per_device_eval_batch_size 8 \
  --output_dir "${output_dir}" \
  --reward_model_name_or_path "${reward_model_name_or_path}" \
  --policy_model_name_or_path "${policy_model_name_or_path}" \
  --init_value_with_reward True \
  --rollout_batch_size 256 \
  --step_batch_size 128 \
  --learning_rate 1e-5 \
  --warmup_steps 5 \
  --eval_steps 100 \
  --kl_coef "${kl_coef}" \
  --total_epochs 10 \
  --flash_attn True \
  --prompt_dict_path "./examples/prompts/v0_inputs_noinputs.json" \
  --save_steps 20 --whiten_rewards True \
  --kl_term_variant "jensen_shannon" \
  --use_lora True \
  --lora_r 8 \
  --lora_alpha 64 \
  --lora_dropout 0.1
""",
    {
        "model.model_name_or_path": "/alpacafarm/sft10k/dir",
        "stage.reward_model_name": "/alpacafarm/reward-model-human/dir",
        "stage.init_value_with_reward": True,
        "data.dataset_name": ["tatsu-lab/alpaca_farm"],
        "data.dataset_config_name": "alpaca_instructions",
        "data.train_splits": ["unlabeled"],
        "data.eval_splits": ["val"],
        "data.prompt_dict_path": "./examples/prompts/v0_inputs_noinputs.json",
        "data.max_prompt_length": 192,
        "stage.output_max_length": 300,
        # 256 answers an update in rollouts of 16; an optimizer step takes 128 of them, 16 at a time
        "stage.batch_size": 16,
        "stage.generation_batches": 16,
        "stage.mini_batch_size": 16,
        "training.gradient_accumulation_steps": 8,
        "stage.ppo_epochs": 2,
        "stage.total_epochs": 10,
        "stage.init_kl_coef": 0.02,
        "stage.adap_kl_ctrl": False,
        "stage.kl_target": 6.0,
        "stage.kl_estimator": "jensen_shannon",
        "stage.whiten_rewards": True,
        "stage.save_freq": 20,
        "training.run_name": "wandb_run_name",
        "training.per_device_eval_batch_size": 8,
        "training.learning_rate": 1e-5,
        # 5 updates of 2 epochs x 256 / 128 optimizer steps
        "training.warmup_steps": 20,
        "training.eval_strategy": "steps",
        "training.eval_steps": 100,
        "training.adam_epsilon": 1e-5,
        "training.output_dir": "/output/dir/for/saving/lora/weights",
        "peft.peft": "lora",
        "peft.lora_rank": 8,
        "peft.lora_alpha": 64,
        "peft.lora_dropout": 0.1,
        "peft.lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    },
    (
        "dialect: alpaca-farm",
        "--flash_attn: ",
        "--warmup_steps 5: here --warmup_steps 20, 5 updates of 4 optimizer steps",
    ),
    {
        "run_name": "wandb_run_name",
        "output_dir": "/output/dir/for/saving/lora/weights",
        "reward_model_name_or_path": "/alpacafarm/reward-model-human/dir",
        "policy_model_name_or_path": "/alpacafarm/sft10k/dir",
        "kl_coef": "0.02",
    },
)
INFERENCE = SeedCommand(
    "003 inference",
    "infer",
    None,
    r"""CUDA_VISIBLE_DEVICES=0 python ./examples/run_inference.py \
        --model_name_or_path $MODEL_PATH \
        --base_model_path $BASE_MODEL_PATH \
        --input_path $INPUT_PATH \
        --output_path $OUTPUT_PATH \
        --lora
""",
    variables={
        "BASE_MODEL_PATH": "/alpacafarm/sft10k/dir",
        "MODEL_PATH": "/output/dir/for/saving/lora/weights/checkpoint-100/pytorch_model.bin",
        "OUTPUT_PATH": "/path/for/eval/output.json",
        "INPUT_PATH": "/path/to/downloaded/alpaca_farm_evaluation.json",
    },
)
EVALUATION = SeedCommand(
    "003 evaluation",
    "judge",
    None,
    "python run_eval.py --input-path $IN_PATH --output-path $OUT_PATH",
    variables={
        "IN_PATH": "/path/for/eval/output.json",
        "OUT_PATH": "/output/simulated/preference/output.json",
    },
)
COMMANDS = [PPO, INFERENCE, EVALUATION]
