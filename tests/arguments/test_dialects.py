"""A command line of another system is read with that system's flags and defaults; which one is told by its flags."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlhf_hw.arguments.dialects.dialect import Dialect
from rlhf_hw.arguments.dialects.recognise import DIALECTS
from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.ppo import PPORun, parse_ppo, ppo_parser
from rlhf_hw.arguments.reward import parse_reward, reward_parser
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sft import parse_sft, sft_parser
from rlhf_hw.arguments.translation import Held

PARSERS = {"sft": sft_parser, "reward": reward_parser, "ppo": ppo_parser}
SFT = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o", "--num_warmup_steps", "0"]
OURS = ["--model_name", "m", "--reward_model_name", "r", "--dataset_name", "d"]
PPO = ["--actor_model_name_or_path", "m", "--critic_model_name_or_path", "r", "--data_path", "d"]
FARM = ["--policy_model_name_or_path", "m", "--reward_model_name_or_path", "r", "--dataset_path", "d"]

Refused = Callable[..., str]


@pytest.mark.parametrize("command", PARSERS)
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_every_flag_of_a_dialect_leads_to_a_setting_or_to_a_line(dialect: Dialect, command: str) -> None:
    if command not in dialect.flags:
        return
    parser: StageParser = PARSERS[command]()
    settings = {action.dest for action in parser._actions}
    for name, flag in dialect.flags[command].items():
        if flag.setting is not None:
            assert flag.setting in settings, name
        else:
            assert flag.note, name
            Held(name, flag)
    assert set(dialect.defaults[command]) <= settings


def test_one_word_means_what_its_own_system_means_by_it() -> None:
    words = ["--per_device_train_batch_size", "8"]
    ours = parse_ppo(["--model_name", "m", "--reward_model_name", "r", "--batch_size", "32", *words])
    theirs = parse_ppo([*PPO, *words])
    assert (ours.stage.mini_batch_size, ours.stage.batch_size) == (8, 32)
    assert (theirs.stage.mini_batch_size, theirs.stage.batch_size) == (
        8,
        8,
    )  # minibatches of one rollout at most
    assert any("--per_device_train_batch_size 8: here --batch_size" in line for line in theirs.opening)
    ours = parse_ppo(["--model_name", "m", "--reward_model_name", "r", "--target_kl", "3"])
    theirs = parse_ppo([*FARM, "--target_kl", "3"])
    assert (ours.stage.target_kl, ours.stage.kl_target) == (3, 6)
    assert (theirs.stage.target_kl, theirs.stage.kl_target) == (0.1, 3)
    assert any("--target_kl 3: here --kl_target" in line for line in theirs.opening)


def test_defaults_are_those_of_the_system_and_no_system_is_read_into_our_own_names() -> None:
    ours = parse_sft(["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"])
    assert (ours.opening, ours.peft.peft, ours.data.train_on_inputs) == ((), "lora", False)
    theirs = parse_sft([*SFT, "--num_warmup_steps", "3"])
    assert theirs.opening == (
        "dialect: deepspeed-chat, the flags and defaults of DeepSpeed-Chat (told by --data_path; --dialect names another)",
    )
    assert (theirs.peft.peft, theirs.data.train_on_inputs, theirs.training.learning_rate) == (
        None,
        True,
        1e-3,
    )
    assert theirs.training.warmup_steps == 3
    asked = parse_sft([*SFT, "--dialect", "alpaca-rlhf"])
    assert (asked.opening[0].endswith("(as asked)"), asked.data.train_on_inputs) == (True, False)


@pytest.mark.parametrize(
    ("flags", "setting", "line"),
    [
        (
            ["--kl_coef", "0.3"],
            ("stage", "init_kl_coef", 0.3),
            "--kl_coef: the only flag of alpaca-farm here, read as",
        ),
        (["--query_len", "99"], ("data", "max_prompt_length", 99), "read as --max_prompt_length"),
        (
            ["--max_prompt_seq_len=99"],
            ("data", "max_prompt_length", 99),
            "the only flag of deepspeed-chat here",
        ),
        (
            ["--target_kl", "3"],
            ("stage", "target_kl", 3),
            None,
        ),  # ours too, and so it means what it means here
        (["--data_path", "d"], ("data", "dataset_name", ["d"]), None),
        (["--enable_hybrid_engine"], ("stage", "ppo_epochs", 4), "--enable_hybrid_engine: a rollout uses"),
    ],
)
def test_one_flag_of_another_system_changes_no_default(
    flags: list[str], setting: tuple[str, str, object], line: str | None
) -> None:
    group, name, value = setting
    ours, run = parse_ppo(OURS), parse_ppo([*OURS, *flags])
    assert getattr(getattr(run, group), name) == value
    setattr(getattr(run, group), name, getattr(getattr(ours, group), name))
    assert run.config_dict() == ours.config_dict()
    if line is None:
        assert run.opening == ()
    else:
        assert any(line in said for said in run.opening)
        assert "all defaults are ours" in run.opening[0]


def test_two_flags_of_a_system_or_the_one_for_its_model_are_a_command_line_of_it() -> None:
    assert parse_ppo([*OURS, "--kl_coef", "0.3", "--query_len", "99"]).stage.whiten_rewards is True
    assert parse_ppo(["--policy_model_name_or_path", "m", *OURS[2:4]]).stage.whiten_rewards is True


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--kl_coef", "0.3"], {"init_kl_coef": 0.3}),
        # an update of 2 epochs has 2 x 64 / 32 steps, as the run had
        (["--warmup_steps", "3", "--dialect", "alpaca-farm"], {"warmup_steps": 12}),
        (["--rollout_batch_size", "128", "--adaptive_kl"], {"generation_batches": 16, "adap_kl_ctrl": True}),
        (["--dialect", "alpaca-farm"], {}),
        (["--actor_learning_rate", "1e-6"], {"learning_rate": 1e-6}),
        (["--dataset_path", "e"], {"dataset_name": ["e"]}),
    ],
)
def test_flags_of_a_system_beside_a_runs_own_file_change_what_they_name_alone(
    tmp_path: Path, flags: list[str], changed: dict[str, object]
) -> None:
    batches = [
        "--rollout_batch_size",
        "64",
        "--rollout_per_device_batch_size",
        "8",
        "--step_batch_size",
        "32",
    ]
    first = parse_ppo([*FARM, *batches, "--warmup_steps", "5", "--eval_steps", "7"])
    assert first.training.warmup_steps == 20
    held = first.config_dict()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(held))
    again = parse_ppo(["--config", str(file), *flags])
    for group in held.values():
        group.update({name: value for name, value in changed.items() if name in group})
    assert again.config_dict() == held
    assert "those of the run in the file" in again.opening[0]


def test_flags_of_a_system_bring_no_defaults_to_the_file_of_a_run_in_our_own_names(tmp_path: Path) -> None:
    held = parse_ppo(OURS).config_dict()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(held))
    again = parse_ppo([str(file), "--kl_coef", "0.3", "--rollout_batch_size", "256"])
    assert again.stage.generation_batches == 256 // held["stage"]["batch_size"]
    again.stage.init_kl_coef, again.stage.generation_batches = (
        held["stage"][name] for name in ("init_kl_coef", "generation_batches")
    )
    assert again.config_dict() == held


def test_a_preset_stands_above_the_dialect_and_both_below_what_is_given() -> None:
    run = parse_ppo([*PPO, "--preset", "alpaca-rlhf"])
    assert run.stage.init_kl_coef == 0.02
    assert parse_ppo([*PPO, "--preset", "alpaca-rlhf", "--init_kl_coef", "0.3"]).stage.init_kl_coef == 0.3


@pytest.mark.parametrize(
    ("parser", "argv", "words"),
    [
        (parse_ppo, [*PPO, "--kl_coef", "0.1"], ["--actor_model_name_or_path", "--kl_coef", "--dialect"]),
        (parse_ppo, [*FARM, "--actor_zero_stage", "0", "--enable_hybrid_engine"], ["--enable_hybrid_engine"]),
        (
            parse_ppo,
            [*PPO, "--tokenizer_name_or_path", "t", "--print_answers"],
            ["--tokenizer_name_or_path is a flag of alpaca-rlhf", "--print_answers one of deepspeed-chat"],
        ),
        (
            parse_ppo,
            [*OURS, "--rollout_batch_size", "64"],
            [
                "--rollout_batch_size: a flag of alpaca-farm, and the only one",
                "--dialect",
                "--generation_batches",
            ],
        ),
        (
            parse_sft,
            [*SFT, "--dialect", "alpaca"],
            ["--dialect", "'alpaca'", "intel, deepspeed-chat, alpaca-rlhf"],
        ),
        (
            parse_sft,
            [*SFT, "--dialect", "alpaca-farm"],
            ["--dialect", "'alpaca-farm'", "expected one of intel"],
        ),
        (
            parse_sft,
            ["--model_name_or_path", "m", "--output_dir", "o", "--dialect", "intel", "--lora_dim", "8"],
            ["--lora_dim: a flag of deepspeed-chat", "read as intel"],
        ),
        (
            parse_sft,
            [*SFT, "--lora_dim", "8", "--lora_rank", "4"],
            ["--lora_rank 4", "--lora_dim", "contradict"],
        ),
        (
            parse_sft,
            [*SFT, "--max_seq_len", "8", "--max_seq_length", "9"],
            ["--max_seq_len", "--max_seq_length"],
        ),
        (parse_sft, [*SFT, "--lora_dim", "-1"], ["--lora_dim: got -1, expected at least 0"]),
        (parse_reward, [*SFT, "--eval_interval", "-3"], ["--eval_interval: got -3"]),
        (parse_ppo, [*PPO, "--actor_lora_dim", "-3"], ["--actor_lora_dim: got -3, expected at least 0"]),
        (parse_ppo, [*PPO, "--critic_lora_dim", "-3"], ["--critic_lora_rank: got -3, expected at least 0"]),
        (parse_ppo, [*FARM, "--lora_r", "-3"], ["--lora_rank: got -3, expected at least 1"]),
        (parse_ppo, [*OURS, "--lora_rank", "-3"], ["--lora_rank: got -3, expected at least 1"]),
        (parse_sft, [*SFT, "--lora_dim", "four"], ["--lora_dim", "'four'", "whole number"]),
        (parse_sft, [*SFT, "--max_seq_len", "long"], ["--max_seq_len: got 'long'"]),
        (parse_sft, [*SFT, "--dtype", "fp8"], ["--dtype", "'fp8'", "fp16, bf16"]),
        (parse_sft, [*SFT, "--lora_dimm", "8"], ["--lora_dimm", "did you mean --lora_dim"]),
        (
            parse_ppo,
            [*FARM, "--rollout_batch_size", "100"],
            ["--rollout_batch_size: 100", "32 x 1 processes"],
        ),
        (parse_ppo, [*FARM, "--save_steps_extra", "1,2"], ["--save_steps_extra", "'1,2'", "20__100"]),
        (parse_ppo, [*FARM, "--save_steps_extra", "2²"], ["--save_steps_extra", "'2²'", "20__100"]),
        (parse_ppo, [*FARM, "--policy_lora_path", "nowhere"], ["--policy_lora_path", "nowhere", "adapter"]),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_flags_as_typed(
    refused: Refused, parser: Callable[[list[str]], object], argv: list[str], words: list[str]
) -> None:
    line = refused(parser, *argv)
    for word in words:
        assert word in line


def test_another_spelling_may_say_the_same_and_our_own_names_stay_welcome() -> None:
    run = parse_sft(
        [*SFT, "--lora_dim", "8", "--lora_rank", "8", "--lora-alpha", "16", "--report_to", "none"]
    )
    assert (run.peft.lora_rank, run.peft.lora_alpha) == (8, 16)


def test_a_file_in_a_dialect_is_beaten_by_the_command_line_in_any_spelling(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora_dim: 8\nmax_seq_len: 99\nprint_loss: true\ndata_path: [a, b]\n")
    words = ["--model_name_or_path", "m", "--output_dir", "o", "--config", str(file)]
    run = parse_sft(words)
    assert (run.peft.lora_rank, run.data.max_seq_length, run.data.dataset_name) == (8, 99, ["a", "b"])
    assert run.training.logging_steps == 1
    run = parse_sft([*words, "--lora_rank", "4", "--max_seq_length", "50"])
    assert (run.peft.lora_rank, run.data.max_seq_length) == (4, 50)
    assert parse_sft([*words, "--lora_dim", "2"]).peft.lora_rank == 2


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        # answers at a time, in a minibatch, minibatches a step → minibatch, rollouts an update
        (("4", "4", "1"), (4, 1)),
        (("4", "4", "2"), (4, 2)),
        (("6", "4", "1"), (4, 2)),
        (("2", "16", "1"), (2, 1)),
        (("8", "2", "2"), (2, 1)),
    ],
)
def test_deepspeed_chats_batches_are_made_of_whole_rollouts(
    batches: tuple[str, str, str], expected: tuple[int, int]
) -> None:
    answers, minibatch, accumulation = batches
    run: PPORun = parse_ppo(
        [
            *PPO,
            *("--per_device_generation_batch_size", answers, "--per_device_training_batch_size", minibatch),
            *("--gradient_accumulation_steps", accumulation),
        ]
    )
    assert (run.stage.mini_batch_size, run.stage.generation_batches) == expected


def test_alpaca_farms_batches_are_shared_out_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run: PPORun = parse_ppo(
        [*FARM, "--warmup_steps", "5", "--rollout_batch_size", "128", "--step_batch_size", "64"]
    )
    assert (run.stage.batch_size, run.stage.generation_batches) == (32, 2)
    assert (run.stage.mini_batch_size, run.training.gradient_accumulation_steps) == (2, 16)
    assert run.training.warmup_steps == 20  # updates, of 2 epochs of 2 steps


def test_the_switch_of_deepspeed_stands_beside_its_configuration(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 2}}')
    assert parse_sft([*SFT, "--deepspeed", "--deepspeed_config", str(file)]).training.deepspeed == str(file)
    line = refused(parse_sft, *SFT, "--deepspeed", "other.json", "--deepspeed_config", str(file))
    assert "--deepspeed other.json and --deepspeed_config" in line


def test_dtype_is_a_choice_of_arithmetic_only_where_it_is_given() -> None:
    assert (parse_sft(SFT).training.fp16, parse_sft(SFT).training.bf16) == (None, None)
    assert parse_sft([*SFT, "--dtype", "fp16"]).training.fp16 is True
    assert parse_sft([*SFT, "--dtype", "bf16"]).training.bf16 is True


def test_the_learning_rate_of_lora_is_the_learning_rate_where_lora_alone_trains() -> None:
    rates = ["--learning_rate", "1e-3", "--lora_learning_rate", "5e-4"]
    assert parse_sft([*SFT, *rates, "--lora_dim", "8"]).training.learning_rate == 5e-4
    without: Run = parse_sft([*SFT, *rates])
    assert without.training.learning_rate == 1e-3
    assert any("--lora_learning_rate 0.0005: without effect" in line for line in without.opening)


def test_a_test_run_stops_after_so_many_rollouts() -> None:
    run: PPORun = parse_ppo(
        [*PPO, "--enable_test_mode", "--test_stop_step", "3", "--per_device_generation_batch_size", "4"]
    )
    assert (run.stage.steps, run.stage.total_epochs) == (12, None)


def test_steps_that_are_asked_for_beat_epochs_that_are_only_a_default() -> None:
    assert parse_ppo([*PPO, "--steps", "16"]).stage.total_epochs is None
    run: PPORun = parse_ppo([*PPO, "--steps", "16", "--num_train_epochs", "2"])
    assert run.stage.total_epochs == 2
    assert any("--steps: not used" in note for note in run.notes)


def test_evaluation_of_step_2_can_be_held_to_a_number_of_batches() -> None:
    words = [*SFT, "--per_device_eval_batch_size", "4", "--eval_interval", "50", "--eval_iters", "10"]
    run = parse_reward(words)
    assert (run.training.eval_strategy, run.training.eval_steps) == ("steps", 50)
    assert run.data.max_eval_samples == 40
    assert parse_reward(SFT).training.eval_strategy == "epoch"
