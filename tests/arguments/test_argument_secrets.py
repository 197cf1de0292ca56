"""Credentials on the command line stay out of everything a run may print or keep."""

import json

import pytest
from transformers import TrainingArguments

from rlhf_hw.arguments.merge import parse_merge
from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.arguments.training import accepted_fields, training_kwargs

SECRET = "hf_sesame-open-42"
SFT = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
FLAGS = ["--hf_access_token", "--token", "--use_auth_token", "--hub_token", "--push_to_hub_token"]


@pytest.mark.parametrize("flag", FLAGS)
def test_no_credential_is_in_the_configuration_the_repr_or_the_training_arguments(flag: str) -> None:
    for run in (
        parse_sft([*SFT, flag, SECRET]),
        parse_reward(["--model_name", "m", "--output_dir", "o", flag, SECRET]),
        parse_ppo(["--model_name", "m", "--reward_model_name", "r", f"{flag}={SECRET}"]),
    ):
        kwargs, notes = training_kwargs(run.training, accepted_fields(TrainingArguments))
        assert SECRET not in json.dumps(run.config_dict())
        assert SECRET not in repr(run)
        assert SECRET not in repr((kwargs, notes, run.notes))
        assert run.secret_values() == (SECRET,)


def test_the_merge_keeps_its_credential_to_itself() -> None:
    run = parse_merge(["--adapter_model_name", "a", "--output_name", "b", "--token", SECRET])
    assert SECRET not in repr(run) + json.dumps(run.config_dict())
    assert run.secret_values() == (SECRET,)


@pytest.mark.parametrize(
    ("argv", "token"),
    [
        ([], None),
        (["--use_auth_token"], True),
        (["--use_auth_token", "True"], True),
        (["--use_auth_token", "False"], None),
        (["--use_auth_token", SECRET], SECRET),
        (["--use_auth_token", "True", "--token", SECRET], SECRET),
    ],
)
def test_the_hub_gets_a_token_the_stored_login_or_nothing(argv: list[str], token: str | bool | None) -> None:
    assert parse_sft([*SFT, *argv]).model.hub_token() == token


def test_true_is_no_secret() -> None:
    assert parse_sft([*SFT, "--use_auth_token", "True"]).secret_values() == ()


@pytest.mark.parametrize(
    "argv",
    [
        ["--token", SECRET, "--hf_access_token", "other"],
        [f"--hf_acces_token={SECRET}"],
        ["--hf_acces_token", SECRET],
    ],
)
def test_an_error_about_a_credential_does_not_show_it(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_sft([*SFT, *argv])
    assert SECRET not in capsys.readouterr().err
