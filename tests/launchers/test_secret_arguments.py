"""What a launch prints can be shown to anyone."""

import json
import shlex
from urllib.parse import quote, unquote

import pytest

from launchers import LaunchPlan
from launchers.shown_commands import redact_argv
from rlhf_hw import secrets

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


NESTED = f'{{"hub": {{"hub_token": "{TOKEN}"}}, "split_batches": true}}'


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--c", NESTED], ["--c", '{"hub": {"hub_token": "<redacted>"}, "split_batches": true}']),
        ([f"--c={NESTED}"], ['--c={"hub": {"hub_token": "<redacted>"}, "split_batches": true}']),
        (["--c", '[{"apiKey": "x"}, 1]'], ["--c", '[{"apiKey": "<redacted>"}, 1]']),
        (["--c", f"{{'hub_token': '{TOKEN}', 'a': 1}}"], ["--c", "{'hub_token': '<redacted>', 'a': 1}"]),
        (["--c", f"{{hub_token: {TOKEN}, a: 1}}"], ["--c", "{hub_token: <redacted>, a: 1}"]),
        ([f'--c={{"hub_token": "{TOKEN}"'], ['--c={"hub_token": "<redacted>"']),
        (["--d", f"https://me:{TOKEN}@host:80/x?y=1"], ["--d", "https://<redacted>@host:80/x?y=1"]),
        ([f"--d=HTTP://:a@{TOKEN}@host"], ["--d=HTTP://<redacted>@host"]),
        (["--d", f"https://host/x?token={TOKEN}&y=1"], ["--d", "https://host/x?token=<redacted>&y=1"]),
        ([f"hub.token={TOKEN}"], ["hub.token=<redacted>"]),
        ([f"--env=HF_TOKEN={TOKEN}"], ["--env=HF_TOKEN=<redacted>"]),
        ([f"--export=ALL,HF_TOKEN={TOKEN},A=b"], ["--export=ALL,HF_TOKEN=<redacted>,A=b"]),
        ([f"--args=-x WANDB_API_KEY={TOKEN} -x A"], ["--args=-x WANDB_API_KEY=<redacted> -x A"]),
        ([f"--c='{{hub_token: {TOKEN}}}'"], ["--c='{hub_token: <redacted>}'"]),
        (
            [f"{{url: https://me:{TOKEN}@host, hub_token=ab"],
            ["{url: https://<redacted>@host, hub_token=<redacted>"],
        ),
        ([f"--d=https://{TOKEN}@host/x.git"], ["--d=https://<redacted>@host/x.git"]),
        (["--d", f"git+https://{TOKEN}@host@y"], ["--d", "git+https://<redacted>@y"]),
        (["--auth", TOKEN, "--a", "1"], ["--auth", "<redacted>", "--a", "1"]),
        ([f"--github-pat={TOKEN}", "--pat", "x"], ["--github-pat=<redacted>", "--pat", "<redacted>"]),
        (["--token", "--" + TOKEN.upper(), "--a"], ["--token", "<redacted>", "--a"]),
        (["--token", "--0f1e2d3c4b5a", "--a"], ["--token", "<redacted>", "--a"]),
        (["--api_key", "--abcdef123456ghijkl"], ["--api_key", "<redacted>"]),
        (["--api_keys", f'["{TOKEN}"]', "--n", TOKEN], ["--api_keys", "<redacted>", "--n", "<redacted>"]),
        (["--api_keys", "x", TOKEN, "--n", "1"], ["--api_keys", "<redacted>", "<redacted>", "--n", "1"]),
        ([f"--c={{api_keys: [b, {TOKEN}], a: b}}"], ["--c={api_keys: [<redacted>], a: b}"]),
        ([f"--c={{'api_keys': ['{TOKEN}', 'b'"], ["--c={'api_keys': [<redacted>"]),
        (["--c", f'{{"pat": ["{TOKEN}", "b"]}}'], ["--c", '{"pat": ["<redacted>", "<redacted>"]}']),
        (
            ["--hub_token", TOKEN, "--c", f'["{TOKEN}"]'],
            ["--hub_token", "<redacted>", "--c", '["<redacted>"]'],
        ),
    ],
)
def test_a_secret_inside_an_argument_is_shown_neither_by_a_launcher_nor_by_a_run(argv, shown) -> None:
    assert secrets.redact_argv(argv) == shown
    assert redact_argv(argv) == shown
    line = LaunchPlan(argv).shell()
    assert TOKEN not in line
    words = [word if "$" not in word else shown[i] for i, word in enumerate(shlex.split(line))]
    assert words == shown
    assert secrets.shell_command(argv) == line


@pytest.mark.parametrize(
    "argv",
    [
        ["--c", '{"hub_token":null,"split_batches":true, "é": 1.50}'],
        ["--c", "[1,2]", '--fsdp_config={"min_num_params":0}', "--x={", "--y=[a, b: c]"],
        [
            "--d",
            "https://host:8080/a@b",
            "--mail",
            "me@host",
            "ssh://git@host/x",
            "https://host/?max_tokens=5",
        ],
        ["--c", '{"eos_token": "</s>", "pad_token":"<pad>"}', "--note", "password: none"],
        [
            "--use_auth_token",
            "--per_device_train_batch_size",
            "4",
            "--token",
            "--gradient_checkpointing=true",
        ],
        ["--hub_token", "--bf16", "--use_auth_token", "--no-use-lazy-mode", "--patience", "3", "--path", "x"],
        ["--export=ALL,PAD_TOKEN=<pad>,USE_AUTH_TOKEN=true", "--x=a=b", "--note", "a token=1"],
    ],
)
def test_an_argument_without_secrets_is_shown_as_it_was_typed(argv) -> None:
    assert shlex.split(LaunchPlan(argv).shell()) == argv
    assert secrets.redact_argv(argv) == argv


def test_percent_encoded_words_are_shown_without_the_secrets_in_them() -> None:
    words = [quote(word) for word in ("train.py", "--c", NESTED, "--note", "a b", "--hub_token", TOKEN)]
    line = LaunchPlan(["python", "rank.py", "--env", "A=b", "--quoted", *words]).shell()
    assert TOKEN not in line
    assert "<redacted>" in line
    assert line.endswith(' --note a%20b --hub_token "$HUB_TOKEN"')
    decoded = unquote(shlex.split(line)[7])
    assert json.loads(decoded) == {"hub": {"hub_token": "<redacted>"}, "split_batches": True}
