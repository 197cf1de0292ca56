"""What every training command of seeds 000, 001, 003 and 004 is read as: setting by setting, and what the user is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import seed_000
import seed_001
import seed_003
import seed_004
import yaml
from commands import TRAINING, SeedCommand

from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.run import Run
from rlhf_hw.arguments.sft import parse_sft

PARSE = {"sft": parse_sft, "reward": parse_reward, "ppo": parse_ppo}
COMMANDS = [
    command
    for seed in (seed_000, seed_001, seed_003, seed_004)
    for command in seed.COMMANDS
    if command.stage in TRAINING
]


@pytest.fixture(autouse=True)
def seed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory that the commands expect: seed 003's has the texts around instructions."""
    prompts = tmp_path / "examples" / "prompts"
    prompts.mkdir(parents=True)
    texts = {"prompt_inputs": "{instruction}\n{input}\n", "prompt_noinputs": "{instruction}\n"}
    (prompts / "v0_inputs_noinputs.json").write_text(json.dumps(texts))
    monkeypatch.chdir(tmp_path)


def read(command: SeedCommand, *more: str) -> Run:
    return PARSE[command.stage]([*command.words(), *more])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_of_the_seeds_comes_to_the_settings_it_had_there(command: SeedCommand) -> None:
    run = read(command)
    for name, expected in command.settings.items():
        group, field = name.split(".")
        assert getattr(getattr(run, group), field) == expected, name
    for line in command.lines:
        assert any(line in opening for opening in run.opening), (line, run.opening)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_launchers_rank_in_front_changes_nothing(command: SeedCommand) -> None:
    words = command.words()
    assert PARSE[command.stage](["--local_rank=0", *words]).config_dict() == read(command).config_dict()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_configuration_that_a_run_leaves_gives_the_run_again_in_its_dialect_and_without(
    command: SeedCommand,
) -> None:
    held = read(command).config_dict()
    Path("run.yaml").write_text(yaml.safe_dump(held))
    again = PARSE[command.stage](["run.yaml"])
    assert again.opening == ()
    assert again.config_dict() == held
    again = PARSE[command.stage](["run.yaml", "--dialect", str(command.dialect)])
    assert again.config_dict() == held
