"""Defaults of a preset stand below a configuration file, which stands below the command line."""

from pathlib import Path

import pytest

from rlhf_hw.arguments.parser import StageParser
from rlhf_hw.arguments.ppo import parse_ppo, ppo_parser
from rlhf_hw.arguments.presets import PRESETS
from rlhf_hw.arguments.reward import parse_reward, reward_parser
from rlhf_hw.arguments.sft import parse_sft, sft_parser

PPO = ["--model_name", "m", "--reward_model_name", "r"]
SFT = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
PARSERS = {"sft": sft_parser, "reward": reward_parser, "ppo": ppo_parser}


def test_a_preset_replaces_defaults_and_is_beaten_by_file_and_command_line(tmp_path: Path) -> None:
    assert parse_ppo(PPO).stage.init_kl_coef == 0.2
    assert parse_ppo([*PPO, "--preset", "deepspeed-chat"]).stage.init_kl_coef == 0.1
    assert parse_ppo([*PPO, "--preset", "alpaca-rlhf"]).stage.init_kl_coef == 0.02
    file = tmp_path / "run.yaml"
    file.write_text("preset: deepspeed-chat\ninit_kl_coef: 0.3\n")
    run = parse_ppo([*PPO, "--config", str(file)])
    assert (run.stage.init_kl_coef, run.stage.score_clip) == (0.3, 5.0)
    assert parse_ppo([*PPO, f"--config={file}", "--init_kl_coef", "0.4"]).stage.init_kl_coef == 0.4
    assert parse_ppo([*PPO, f"--config={file}", "--preset=alpaca-rlhf"]).stage.normalize_scores is True


def test_what_a_preset_sets_was_not_given_by_the_user_but_is_passed_on_to_the_trainer() -> None:
    run = parse_sft([*SFT, "--preset", "deepspeed-chat"])
    assert "num_train_epochs" not in run.given
    assert run.training.said()["num_train_epochs"] == 1
    assert run.opening[0].startswith("preset deepspeed-chat")


def test_a_preset_leaves_the_users_data_alone(tmp_path: Path) -> None:
    for name, commands in PRESETS.items():
        run = parse_ppo([*PPO, "--dataset_name", "mine", "--preset", name])
        assert (run.data.dataset_name, run.data.data_split, run.data.train_splits) == (["mine"], None, None)
        assert run.training.output_dir == "runs/"
        assert "ppo" in commands
    run = parse_ppo([*PPO, "--preset", "alpaca-farm-lora"])
    assert (run.stage.kl_estimator, run.stage.answers_per_update) == ("jensen_shannon", 256)
    assert (run.peft.peft, run.peft.lora_alpha, run.training.gradient_accumulation_steps) == ("lora", 64, 8)


def test_a_file_of_ones_own_has_none_of_the_default_data_sets_parts(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n')
    farm = ["--policy_model_name_or_path", "m", "--reward_model_name_or_path", "r", "--train_file", str(file)]
    data = parse_ppo(farm).data
    assert (data.dataset_name, data.dataset_config_name, data.train_splits) == (None, None, None)


def test_an_unknown_preset_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_sft([*SFT, "--preset", "deepspeed"])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert "--preset: got 'deepspeed', expected one of intel-neural-chat, deepspeed-chat, alpaca-rlhf" in line


@pytest.mark.parametrize(("preset", "command"), [(p, c) for p, commands in PRESETS.items() for c in commands])
def test_every_preset_names_settings_that_exist_with_values_their_flags_would_take(
    preset: str, command: str
) -> None:
    parser: StageParser = PARSERS[command]()
    actions = {action.dest: action for action in parser._actions if action.nargs != 0}
    for name, value in PRESETS[preset][command].items():
        action = actions[name]
        words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        for word in words:
            convert = action.type
            assert callable(convert), name
            assert convert(word) in (value, *(value if isinstance(value, list) else ())), name


#: what tells a seed's training from the others': preset → command → setting → value
TELLING = {
    "intel-neural-chat": {
        "ppo": {"kl_estimator": "kl", "adap_kl_ctrl": True, "value_model": "trunk", "ppo_epochs": 4}
    },
    "deepspeed-chat": {
        "sft": {"train_on_inputs": True},
        "reward": {"rm_loss": "tokenwise"},
        "ppo": {
            "init_kl_coef": 0.1,
            "score_clip": 5.0,
            "init_value_with_reward": True,
            "whiten_advantages": False,
        },
    },
    "alpaca-rlhf": {
        "sft": {"train_on_inputs": False},
        "ppo": {"init_kl_coef": 0.02, "normalize_scores": True, "ppo_epochs": 2},
    },
    "alpaca-farm-lora": {
        "reward": {"rm_loss": "cross_entropy"},
        "ppo": {
            "kl_estimator": "jensen_shannon",
            "init_kl_coef": 0.02,
            "whiten_rewards": True,
            "k_beta": 0.1,
        },
    },
}


@pytest.mark.parametrize("command", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("preset", TELLING)
def test_every_preset_is_a_run_of_every_stage(preset: str, command: str) -> None:
    """Its settings contradict each other nowhere, and the run's configuration shows them."""
    words = {"sft": SFT, "reward": [*SFT[:2], *SFT[4:]], "ppo": PPO}[command]
    parse = {"sft": parse_sft, "reward": parse_reward, "ppo": parse_ppo}[command]
    shown = parse([*words, "--preset", preset]).config_dict()
    settings = {name: value for group in shown.values() for name, value in group.items()}
    for name, value in TELLING[preset].get(command, {}).items():
        assert settings[name] == value, name
