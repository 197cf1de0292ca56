"""A configuration file is the command line written down: same names, same checks, and the command line beats it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sft import parse_sft

SETTINGS = {
    "model_name_or_path": "m",
    "dataset_name": "d",
    "output_dir": "o",
    "learning_rate": "3e-4",
    "bf16": True,
    "lora_target_modules": ["q_proj", "v_proj"],
    "evaluation_strategy": "steps",
}
SFT = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]


def write(directory: Path, settings: object, name: str = "run.yaml") -> str:
    path = directory / name
    path.write_text(json.dumps(settings) if name.endswith(".json") else yaml.safe_dump(settings))
    return str(path)


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_sft(argv)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("name", ["run.yaml", "run.yml", "run.json"])
def test_a_file_means_what_its_flags_mean(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, SETTINGS, name)
    written = "--learning_rate 3e-4 --bf16 --lora_target_modules q_proj v_proj --evaluation_strategy steps"
    by_flags = parse_sft([*SFT, *written.split()])
    for argv in ([path], ["--config", path], [f"--config={path}"]):
        assert parse_sft(argv).config_dict() == by_flags.config_dict()


def test_the_command_line_beats_the_file_under_any_spelling(tmp_path: Path) -> None:
    path = write(tmp_path, SETTINGS)
    run = parse_sft(["--eval_strategy", "epoch", "--config", path, "--learning_rate", "1e-5", "--bf16=false"])
    assert run.training.eval_strategy == "epoch"
    assert run.training.learning_rate == 1e-5
    assert run.training.bf16 is False
    assert parse_sft([path, "--lora_target_modules", "o_proj"]).peft.lora_target_modules == ["o_proj"]


def test_groups_are_only_a_way_to_write(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "peft": {"peft": "lora", "lora_rank": 4},
            "anything": {"model_name_or_path": "m", "deeper": {"dataset_name": "d", "output_dir": "o"}},
        },
    )
    run = parse_sft([path])
    assert (run.peft.lora_rank, run.data.dataset_name) == (4, ["d"])


def test_a_mapping_for_a_flag_that_takes_one_is_its_value(tmp_path: Path) -> None:
    run = parse_sft([*SFT, "--config", write(tmp_path, {"fsdp_config": {"min_num_params": 3}})])
    assert json.loads(run.training.fsdp_config) == {"min_num_params": 3}


def test_null_means_none_where_a_setting_may_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_sft([*SFT, "--config", write(tmp_path, {"peft": None})]).peft.peft is None
    line = refusal([*SFT, "--config", write(tmp_path, {"lora_rank": None})], capsys)
    assert "lora_rank" in line
    assert "null" in line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_rnk": 4}, ["lora_rnk", "did you mean lora_rank"]),
        ({"peft": {"lora_rnk": 4}}, ["lora_rnk", "did you mean lora_rank"]),
        ({"lora_rank": "four"}, ["--lora_rank", "'four'", "whole number"]),
        ({"lora_rank": [1, 2]}, ["lora_rank", "list"]),
        ({"task": "poem"}, ["--task", "'poem'"]),
        ({"lora_rank": 4, "lora_r": 8}, ["--lora_rank", "--lora_r"]),
        ({"lora_rank": 4, "group": {"lora_rank": 8}}, ["lora_rank", "twice"]),
        ({"config": "other.yaml"}, ["config"]),
        (["a", "b"], ["mapping"]),
    ],
)
def test_errors_name_the_file_and_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: object, words: list[str]
) -> None:
    path = write(tmp_path, settings)
    line = refusal([*SFT, "--config", path], capsys)
    for word in [path, *words]:
        assert word in line


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "x: [1\ny: 2"), ("a.json", '{"x": 1,\n')])
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    line = refusal([str(path)], capsys)
    assert str(path) in line
    assert "line 2" in line


@pytest.mark.parametrize("argv", [["--config"], ["--config", "nowhere.yaml"], ["--config", "run.toml"]])
def test_a_file_that_cannot_be_read_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in refusal([*SFT, *argv], capsys)


def test_two_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, SETTINGS)
    assert "2 files" in refusal([path, "--config", path], capsys)


@pytest.mark.parametrize(
    ("parse", "argv"),
    [
        (parse_sft, [*SFT, "--peft", "none", "--warmup_ratio", ".1", "--deepspeed", '{"bf16": {}}']),
        (parse_reward, ["--model_name", "m", "--output_dir", "o", "--use_habana"]),
        (
            parse_ppo,
            ["--model_name", "m", "--reward_function", "a.b:c", "--score_clip", "5", "--log_with", "wandb"],
        ),
    ],
)
def test_a_runs_configuration_gives_the_run_again(
    tmp_path: Path, parse: Callable[[list[str]], Run], argv: list[str]
) -> None:
    first = parse(argv)
    again = parse(["--config", write(tmp_path, first.config_dict())])
    assert again.config_dict() == first.config_dict()


def test_a_training_file_beats_the_stages_default_data_set(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("{}\n")
    run = parse_reward(["--model_name", "m", "--output_dir", "o", "--train_file", str(data)])
    assert run.data.dataset_name is None
