"""Bad input is one line on stderr that names the flag, and exit status 2."""

from collections.abc import Callable

import pytest

from rlhf_hw.arguments.merge import parse_merge
from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft

SFT = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
REWARD = ["--model_name_or_path", "m", "--output_dir", "o"]
PPO = ["--model_name", "m", "--reward_model_name", "r"]

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lerning_rate", "1"], ["--lerning_rate", "did you mean --learning_rate"]),
        (["--lora-rnk=4"], ["--lora-rnk", "did you mean --lora"]),
        (["--lora_rank", "four"], ["--lora_rank", "'four'", "whole number"]),
        (["--lora_r", "1.5"], ["--lora_r:", "'1.5'", "whole number"]),
        (["--learning_rate", "nan"], ["--learning_rate", "'nan'", "a number"]),
        (["--bf16", "maybe"], ["--bf16", "'maybe'", "true or false"]),
        (["--task", "chatt"], ["--task", "'chatt'", "completion, chat, summarization, code-generation"]),
        (["--optim", "adamw_torc"], ["--optim", "'adamw_torc'", "did you mean adamw_torch"]),
        (["--eval_strategy", "never"], ["--eval_strategy", "'never'", "no, steps, epoch"]),
        (["--deepspeed", "{broken"], ["--deepspeed", "JSON"]),
        (["--lora_rank"], ["--lora_rank"]),
        (["stray"], ["'stray'", "without a flag"]),
        (["--dataset", "x"], ["--dataset:", "unknown flag"]),
    ],
)
def test_a_bad_word_is_named_with_what_is_expected(
    refused: Refused, argv: list[str], words: list[str]
) -> None:
    line = refused(parse_sft, *SFT, *argv)
    assert line.startswith("rlhf-hw sft: error: ")
    for word in words:
        assert word in line


def test_what_is_required_is_named(refused: Refused) -> None:
    assert "--output_dir: required" in refused(parse_sft, "--model_name_or_path", "m")
    assert "--model_name_or_path: required" in refused(parse_ppo)
    assert "--adapter_model_name and --output_name: required" in refused(parse_merge)


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (
            ["--eval_strategy", "no", "--evaluation_strategy", "steps"],
            ["--eval_strategy", "--evaluation_strategy"],
        ),
        (["--lora_rank=4", "--lora_r=8"], ["--lora_rank", "--lora_r"]),
        (
            ["--use_fast_tokenizer", "--no_use_fast_tokenizer"],
            ["--use_fast_tokenizer", "--no_use_fast_tokenizer"],
        ),
    ],
)
def test_one_setting_under_two_spellings_must_agree(
    refused: Refused, argv: list[str], names: list[str]
) -> None:
    line = refused(parse_sft, *SFT, *argv)
    assert all(name in line for name in names)


def test_two_spellings_may_agree_and_one_spelling_may_be_repeated() -> None:
    assert parse_sft([*SFT, "--lora_rank=4", "--lora_r=4"]).peft.lora_rank == 4
    assert parse_sft([*SFT, "--lora_rank=4", "--lora_rank=6"]).peft.lora_rank == 6


@pytest.mark.parametrize("word", ["True", "true", "1", "yes", "YES", "t"])
def test_switches_take_every_word_for_true(word: str) -> None:
    for argv in ([f"--bf16={word}"], ["--bf16", word], ["--bf16"], ["--tf32"], ["--gradient-checkpointing"]):
        parse_sft([*SFT, *argv])
    assert parse_sft([*SFT, "--tf32", word]).training.tf32 is True
    assert parse_sft([*SFT, "--bf16"]).training.bf16 is True


@pytest.mark.parametrize("argv", [["--double_quant=no"], ["--double_quant", "0"], ["--no_double_quant"]])
def test_switches_can_be_turned_off(argv: list[str]) -> None:
    assert parse_sft([*SFT, *argv]).model.double_quant is False


def test_no_flag_may_be_abbreviated(refused: Refused) -> None:
    assert "--learning_rat" in refused(parse_sft, *SFT, "--learning_rat", "1")


def test_ppo_says_what_counts_its_length(refused: Refused) -> None:
    assert "--save_freq" in refused(parse_ppo, *PPO, "--save_steps", "3")
    assert "--ppo_epochs" in refused(parse_ppo, *PPO, "--num_train_epochs", "3")
    assert "--steps" in refused(parse_ppo, *PPO, "--max-steps", "3")


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["--batch_size", "12", "--mini_batch_size", "2"], "--batch_size: 12"),
        (["--reward_function", "pkg.mod:fn"], "--reward_model_name and --reward_function: both"),
        (["--output_max_length", "0"], "--output_max_length"),
        (["--output_min_length", "200"], "--output_min_length"),
        (["--temperature", "0"], "--temperature"),
        (["--top_p", "1.5"], "--top_p"),
        (["--lam", "1.1"], "--lam"),
        (["--clip_range", "-0.2"], "--clip_range"),
        (["--score_clip", "0"], "--score_clip"),
        (["--critic_model_name", "c"], "--critic_model_name"),
        (["--use_score_norm"], "--use_score_norm"),
        (["--steps", "0"], "--steps"),
        (["--max_prompt_length", "-1"], "--max_prompt_length"),
    ],
)
def test_ppo_refuses_what_cannot_work(refused: Refused, argv: list[str], flag: str) -> None:
    assert flag in refused(parse_ppo, *PPO, *argv)


@pytest.mark.parametrize("name", ["module", "module:", ":function", "a b:c", "a:b:c", "a/b.py:c"])
def test_a_reward_function_is_package_module_function(refused: Refused, name: str) -> None:
    assert "package.module:function" in refused(parse_ppo, "--model_name", "m", "--reward_function", name)


def test_ppo_needs_a_reward(refused: Refused) -> None:
    assert "neither was given" in refused(parse_ppo, "--model_name", "m")


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["--fp16", "--bf16"], "--fp16 and --bf16"),
        (["--qlora", "--peft", "prefix"], "--qlora: needs --peft lora"),
        (["--load_in_4bit", "--full_finetune"], "--load_in_4bit"),
        (["--load_in_4bit", "--load_in_8bit"], "--load_in_4bit and --load_in_8bit"),
        (["--validation_split_percentage", "100"], "--validation_split_percentage: got 100"),
        (["--validation_split_percentage", "-1"], "--validation_split_percentage: got -1"),
        (["--max_seq_length", "-5"], "--max_seq_length: got -5"),
        (["--max_train_samples", "0"], "--max_train_samples"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size"),
        (["--lora_dropout", "1"], "--lora_dropout"),
        (["--warmup_ratio", "1.5"], "--warmup_ratio"),
        (["--adafactor", "--optim", "sgd"], "--adafactor"),
        (["--packing", "--dataset_concatenation"], "--packing"),
        (["--use_habana", "--device", "cuda"], "--use_habana"),
        (["--no_cuda", "--device", "cuda"], "--use_cpu"),
        (["--train_file", "x.json"], "--dataset_name and --train_file"),
    ],
)
def test_contradictions_are_found_before_anything_loads(refused: Refused, argv: list[str], flag: str) -> None:
    assert flag in refused(parse_sft, *SFT, *argv)


def test_a_missing_training_file_is_named(refused: Refused) -> None:
    line = refused(parse_reward, *REWARD, "--train_file", "nowhere.jsonl")
    assert "--train_file: there is no file nowhere.jsonl" in line


def test_reward_models_take_lora_or_no_adapter(refused: Refused) -> None:
    assert "--peft: got prefix" in refused(parse_reward, *REWARD, "--peft", "prefix")


def test_pairs_are_not_rebalanced_by_a_length_that_nobody_measures(refused: Refused) -> None:
    """An older transformers knows no such flag; the one line names it too."""
    line = refused(parse_reward, *REWARD, "--train_sampling_strategy", "batch_rebalance")
    assert "--train_sampling_strategy" in line


def test_merging_into_the_adapters_own_directory_is_refused(refused: Refused) -> None:
    assert "--output_name" in refused(parse_merge, "--adapter_model_name", "a", "--output_name", "./a/")


@pytest.mark.parametrize("parser", [parse_sft, parse_reward, parse_ppo, parse_merge])
def test_help_explains_every_flag(
    parser: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser(["--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert headings
    unexplained = [lines[i] for i in headings if not lines[i + 1].startswith("        ")]
    assert unexplained == []


def test_help_lists_the_seeds_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_ppo(["--help"])
    text = capsys.readouterr().out
    for spelling in (
        "--model_name",
        "--hf_access_token",
        "--log_with",
        "--evaluation_strategy",
        "--use_habana",
    ):
        assert spelling in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--offload_reward_model", "--use_hpu_graphs"],
            ["--offload_reward_model: HPU graphs keep", "leave it or"],
        ),
        (
            ["--deepspeed", '{"optimizer": {"type": "AdamW"}}', "--critic_learning_rate", "1e-4"],
            ["--critic_learning_rate: DeepSpeed's own optimizer", 'the section "optimizer"'],
        ),
    ],
)
def test_what_ppo_cannot_share_or_move(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: list[str]
) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: name)
    line = refused(parse_ppo, *PPO, "--output_dir", "o", *flags)
    assert all(word in line for word in words)
