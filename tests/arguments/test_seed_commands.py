"""The command lines of seed 002, verbatim, and every flag its scripts had."""

import shlex

import pytest

from rlhf_hw.arguments.merge import parse_merge
from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft

SFT_CUDA = """
    --model_name_or_path "meta-llama/Llama-2-7b-chat-hf" --bf16 True --dataset_name "Intel/orca_dpo_pairs"
    --dataset_concatenation --per_device_train_batch_size 2 --per_device_eval_batch_size 2
    --gradient_accumulation_steps 4 --evaluation_strategy "no" --save_strategy "steps" --save_steps 2000
    --save_total_limit 1 --learning_rate 1e-4  --logging_steps 1 --do_train --num_train_epochs 3
    --overwrite_output_dir --log_level info --output_dir ./llama2_7b_se --peft lora --use_fast_tokenizer false
"""
SFT_HABANA = SFT_CUDA + '--device "hpu" --use_habana --use_lazy_mode --use_auth_token True'
REWARD_CUDA = """
    --model_name_or_path meta-llama/Llama-2-7b-hf --output_dir llama2_7b_rm --log_level info  --num_train_epochs 3
    --logging_steps 1  --per_device_train_batch_size 4 --hf_access_token xxxxxx
"""
REWARD_HABANA = REWARD_CUDA + "--use_habana --use_lazy_mode"
PPO_CUDA = """
    --log_with=wandb --model_name=llama2_7b_se --reward_model_name=llama2_7b_rm --adafactor=False
    --tokenizer_name=llama2_7b_se  --save_freq=100 --output_max_length=128 --batch_size=8
    --gradient_accumulation_steps=8 --batched_gen=True --ppo_epochs=4 --seed=0 --learning_rate=1.4e-5
    --early_stopping=True --output_dir=llama-se-rl-finetune-128-8-8-1.4e-5_adam --hf_access_token xxxxxx
"""
PPO_HABANA = PPO_CUDA.replace("--log_with=wandb", "") + "--mini_batch_size=1 --use_habana"


@pytest.mark.parametrize("command", [SFT_CUDA + "--use_auth_token True", SFT_HABANA])
def test_the_sft_command_of_seed_002_means_what_it_says(command: str) -> None:
    run = parse_sft(shlex.split(command))
    assert run.model.model_name_or_path == "meta-llama/Llama-2-7b-chat-hf"
    assert run.model.use_fast_tokenizer is False
    assert run.model.hub_token() is True
    assert run.data.dataset_name == ["Intel/orca_dpo_pairs"]
    assert run.data.dataset_concatenation is True
    assert run.data.max_seq_length == 512
    assert (run.peft.peft, run.peft.lora_rank, run.peft.lora_alpha, run.peft.lora_dropout) == (
        "lora",
        8,
        16,
        0.05,
    )
    training = run.training
    assert training.bf16 is True
    assert training.eval_strategy == "no"
    assert (training.save_strategy, training.save_steps, training.save_total_limit) == ("steps", 2000, 1)
    assert (training.per_device_train_batch_size, training.per_device_eval_batch_size) == (2, 2)
    assert (training.gradient_accumulation_steps, training.num_train_epochs) == (4, 3)
    assert (training.learning_rate, training.logging_steps, training.log_level) == (1e-4, 1, "info")
    assert training.do_train is True
    assert training.overwrite_output_dir is True
    assert training.output_dir == "./llama2_7b_se"
    assert training.report_to == ["none"]


def test_the_habana_commands_ask_for_the_hpu_and_the_cuda_commands_for_what_is_there() -> None:
    assert parse_sft(shlex.split(SFT_HABANA)).hardware.device == "hpu"
    assert parse_reward(shlex.split(REWARD_HABANA)).hardware.device == "hpu"
    assert parse_ppo(shlex.split(PPO_HABANA)).hardware.device == "hpu"
    for run in (parse_sft(shlex.split(SFT_CUDA)), parse_reward(shlex.split(REWARD_CUDA))):
        assert run.hardware.device == "auto"
    assert parse_ppo(shlex.split(PPO_CUDA)).hardware.device == "auto"


@pytest.mark.parametrize(
    "command", [REWARD_CUDA, REWARD_HABANA, REWARD_HABANA + " --ddp_find_unused_parameters True"]
)
def test_the_reward_command_of_seed_002_means_what_it_says(command: str) -> None:
    run = parse_reward(shlex.split(command))
    assert run.model.model_name_or_path == "meta-llama/Llama-2-7b-hf"
    assert run.model.torch_dtype == "bfloat16"
    assert run.model.hub_token() == "xxxxxx"
    assert run.data.dataset_name == ["Intel/orca_dpo_pairs"]
    assert (run.data.max_length, run.data.validation_split_percentage) == (512, 2)
    assert (run.peft.lora_rank, run.peft.lora_alpha, run.peft.lora_dropout) == (8, 32, 0.1)
    assert run.peft.lora_all_linear is True
    assert run.training.output_dir == "llama2_7b_rm"
    assert (run.training.num_train_epochs, run.training.per_device_train_batch_size) == (3, 4)
    expected = True if "--ddp_find" in command else None
    assert run.training.ddp_find_unused_parameters is expected


@pytest.mark.parametrize("command", [PPO_CUDA, PPO_HABANA])
def test_the_ppo_command_of_seed_002_means_what_it_says(command: str) -> None:
    run = parse_ppo(shlex.split(command))
    assert run.model.model_name_or_path == run.model.tokenizer_name == "llama2_7b_se"
    assert run.model.hub_token() == "xxxxxx"
    ppo = run.stage
    assert ppo.reward_model_name == "llama2_7b_rm"
    assert (ppo.save_freq, ppo.output_max_length, ppo.batch_size, ppo.mini_batch_size) == (100, 128, 8, 1)
    assert (ppo.ppo_epochs, ppo.early_stopping, ppo.batched_gen) == (4, True, True)
    assert (ppo.init_kl_coef, ppo.adap_kl_ctrl, ppo.target_kl, ppo.reward_baseline) == (0.2, True, 0.1, 0)
    assert (run.peft.lora_rank, run.peft.lora_alpha, run.peft.lora_dropout) == (16, 32, 0.05)
    assert run.training.adafactor is False
    assert (run.training.gradient_accumulation_steps, run.training.seed) == (8, 0)
    assert run.training.learning_rate == 1.4e-5
    assert run.training.output_dir == "llama-se-rl-finetune-128-8-8-1.4e-5_adam"
    assert run.training.report_to == (["wandb"] if "wandb" in command else ["none"])


def test_ppo_has_the_defaults_of_rl_training() -> None:
    run = parse_ppo(["--model_name=a", "--reward_model_name=b"])
    ppo, training = run.stage, run.training
    assert (ppo.steps, ppo.batch_size, ppo.mini_batch_size, ppo.ppo_epochs) == (20000, 32, 1, 4)
    assert (ppo.save_freq, ppo.output_max_length, ppo.early_stopping) == (None, 128, False)
    assert (training.learning_rate, training.gradient_accumulation_steps, training.seed) == (1.41e-5, 4, 0)
    assert (training.output_dir, training.report_to) == ("runs/", ["none"])
    assert run.data.dataset_name == ["Intel/orca_dpo_pairs"]


def test_the_merge_command_of_seed_002_means_what_it_says() -> None:
    run = parse_merge(["--adapter_model_name=../instruction/llama2_7b_se", "--output_name=llama2_7b_se"])
    assert run.merge.adapter_model_name == "../instruction/llama2_7b_se"
    assert run.merge.output_name == "llama2_7b_se"
    assert (run.merge.base_model_name, run.merge.torch_dtype) == (None, "bfloat16")


MODEL = """
    --config_name c --tokenizer_name t --cache_dir d --token x --use_fast_tokenizer True --model_revision main
    --use_auth_token False --trust_remote_code False
"""
GAUDI = """
    --device habana --use_habana --use_lazy_mode True --gaudi_config_name Habana/llama --use_hpu_graphs_for_inference
    --use_hpu_graphs_for_training --max_hpu_graphs 4 --disable_tensor_cache_hpu_graphs --use_compiled_autograd
    --compile_dynamic False --distribution_strategy fast_ddp --context_parallel_size 2 --throughput_warmup_steps 3
    --adjust_throughput --pipelining_fwd_bwd --non_blocking_data_copy --ignore_eos False --profiling_steps 2
    --profiling_warmup_steps 1 --sdp_on_bf16 --fp8
"""
PEFT = """
    --peft lora --lora_rank 4 --lora_alpha 8 --lora_dropout 0 --lora_target_modules q_proj,k_proj v_proj
    --lora_all_linear False
"""
EVERY_SFT_FLAG = f"""
    --model_name_or_path m --output_dir o {MODEL} {GAUDI} {PEFT} --adapter_layers 30 --adapter_len 10
    --num_virtual_tokens 10 --ptun_hidden_size 1024 --train_on_inputs --task chat --do_lm_eval
    --lm_eval_tasks truthfulqa_mc arc_easy --qlora --double_quant False --quant_type fp4 --bits 4
    --full_finetune False --dataset_name d --dataset_config_name c --max_train_samples 3 --max_eval_samples 3
    --special_tokens <a> <b> --preprocessing_num_workers 2 --dataset_cache_directory d --overwrite_cache
    --pad_to_max_length --keep_in_memory --dataset_concatenation --streaming --max_seq_length 512
    --validation_split_percentage 0 --dataset_seed 42 --max_source_length 384 --max_target_length 128 --num_beams 4
    --eval_dataset_size 500
"""
EVERY_REWARD_FLAG = f"""
    --model_name_or_path m --output_dir o {MODEL} {GAUDI} {PEFT} --torch_dtype float32 --load_in_4bit
    --dataset_name d --dataset_config_name c --validation_split_percentage 5 --preprocessing_num_workers 2
    --max_length 64
"""
EVERY_PPO_FLAG = f"""
    {MODEL} {GAUDI} {PEFT} --model_name m --reward_model_name r --log_with tensorboard --learning_rate 1e-5
    --output_max_length 16 --mini_batch_size 2 --batch_size 16 --ppo_epochs 2 --gradient_accumulation_steps 4
    --adafactor False --early_stopping True --target_kl .2 --reward_baseline 1 --batched_gen True --save_freq 2
    --output_dir o --seed 1 --steps 100 --init_kl_coef .1 --adap_kl_ctrl False --dataset_name d
"""


def test_every_flag_of_finetune_clm_parses() -> None:
    run = parse_sft(shlex.split(EVERY_SFT_FLAG))
    assert run.hardware.device == "hpu"
    assert run.hardware.compile_dynamic is False
    assert run.hardware.distribution_strategy == "fast_ddp"
    assert run.peft.lora_target_modules == ["q_proj", "k_proj", "v_proj"]
    assert run.stage.lm_eval_tasks == ["truthfulqa_mc", "arc_easy"]
    assert run.data.special_tokens == ["<a>", "<b>"]
    assert (run.data.task, run.data.eval_dataset_size) == ("chat", 500)
    assert (run.model.qlora, run.model.quantization_bits(), run.model.quant_type) == (True, 4, "fp4")
    assert any("--do_lm_eval" in note for note in run.notes)


def test_every_flag_of_reward_modeling_parses() -> None:
    run = parse_reward(shlex.split(EVERY_REWARD_FLAG))
    assert (run.model.torch_dtype, run.model.load_in_4bit) == ("float32", True)
    assert (run.data.max_length, run.data.validation_split_percentage) == (64, 5)
    assert run.peft.lora_all_linear is False


def test_every_flag_of_rl_training_parses() -> None:
    run = parse_ppo(shlex.split(EVERY_PPO_FLAG))
    assert run.stage.adap_kl_ctrl is False
    assert (run.stage.steps, run.stage.batch_size, run.stage.mini_batch_size) == (100, 16, 2)
    assert run.training.report_to == ["tensorboard"]


@pytest.mark.parametrize("kind", ["lora", "llama_adapter", "ptun", "prefix", "prompt"])
def test_every_adapter_of_the_seed_can_be_named(kind: str) -> None:
    argv = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--peft", kind]
    assert parse_sft(argv).peft.peft == kind


@pytest.mark.parametrize("flags", [["--peft", "none"], ["--full_finetune"]])
def test_a_full_finetune_has_no_adapter(flags: list[str]) -> None:
    argv = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", *flags]
    assert parse_sft(argv).peft.peft is None


def test_sft_trains_unless_only_evaluation_is_asked_for() -> None:
    argv = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
    assert parse_sft(argv).training.do_train is True
    assert parse_sft([*argv, "--do_eval"]).training.do_train is False
