"""What a launch prints can be shown to anyone."""

import shlex

from launchers import LaunchPlan

TOKEN = "a-token-that-nobody-may-see"


def test_the_printed_command_names_a_variable_where_a_secret_was_typed() -> None:
    command = [
        "mpirun",
        "-n",
        "2",
        "python",
        "rl.py",
        "--hf_access_token",
        TOKEN,
        f"--hub-token={TOKEN}",
        "--x",
        "a b",
    ]
    line = LaunchPlan(command, {"MASTER_ADDR": "127.0.0.1"}).shell()
    assert TOKEN not in line
    assert '--hf_access_token "$HF_ACCESS_TOKEN"' in line
    assert '--hub-token="$HUB_TOKEN"' in line
    assert line.startswith("MASTER_ADDR=127.0.0.1 mpirun -n 2 ")
    assert shlex.split(line)[-2:] == ["--x", "a b"]


def test_a_command_without_secrets_is_printed_as_it_runs() -> None:
    command = ["torchrun", "--use_auth_token", "True", "--tokenizer_name", "a tokenizer"]
    assert shlex.split(LaunchPlan(command).shell()) == command
