"""No secret passes: by name on a command line or in a configuration, by value and by looks in texts and logs."""

import io
import logging
import shlex
import subprocess
import sys

import pytest

from rlhf_hw.secrets import (
    REDACTED,
    SecretFilter,
    SecretVault,
    install_log_filter,
    is_secret_name,
    redact_argv,
    redact_mapping,
    redact_text,
    shell_command,
)

SECRET = "hunter2-is-long-enough"


@pytest.mark.parametrize(
    "name",
    [
        *("--hf_access_token", "token", "--use-auth-token", "hub_token", "push_to_hub_token", "HF_TOKEN"),
        *(
            "WANDB_API_KEY",
            "apiKey",
            "openai-api-key",
            "access_key",
            "db_password",
            "AWS_SECRET_ACCESS_KEY",
            "api_keys",
        ),
    ],
)
def test_names_of_credentials_are_secret(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("eos_token", "pad_token", "special_tokens", "max_new_tokens", "num_virtual_tokens", "eos_token_id"),
        *("tokenizer_name", "key", "use_fast_tokenizer", "push_to_hub", "monkey", "truncate_tokens"),
    ],
)
def test_names_of_ordinary_settings_are_not_secret(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--hf_access_token", SECRET, "--seed", "0"], ["--hf_access_token", REDACTED, "--seed", "0"]),
        ([f"--hf_access_token={SECRET}"], [f"--hf_access_token={REDACTED}"]),
        ([f"--hub-token={SECRET}=="], [f"--hub-token={REDACTED}"]),
        (["--hf_access", SECRET], ["--hf_access", REDACTED]),  # argparse accepts abbreviations
        (["mpirun", "-x", f"HF_TOKEN={SECRET}"], ["mpirun", "-x", f"HF_TOKEN={REDACTED}"]),
        (
            ["--extra", f'{{"a": {{"token": "{SECRET}"}}}}'],
            ["--extra", f'{{"a": {{"token": "{REDACTED}"}}}}'],
        ),
        (["--token", "-" + SECRET], ["--token", REDACTED]),
        # booleans, and switches without a value, hide nothing and swallow nothing
        (["--use_auth_token", "True", "--seed", "0"], ["--use_auth_token", "True", "--seed", "0"]),
        (["--use_auth_token", "--seed", "0"], ["--use_auth_token", "--seed", "0"]),
        (["--push_to_hub", "value"], ["--push_to_hub", "value"]),
        (["--token", ""], ["--token", ""]),
    ],
)
def test_secret_flags_lose_their_value_and_nothing_else(argv, expected):
    assert redact_argv(argv) == expected


def test_secret_repeated_elsewhere_on_the_command_line_is_taken_out_there_too():
    argv = ["--token", SECRET, "--dataset_name", f"https://host/{SECRET}/data", "--note", f"{SECRET}{SECRET}"]
    assert SECRET not in " ".join(redact_argv(argv))


def test_short_secret_is_hidden_at_its_flag_and_does_not_shred_the_rest():
    argv = ["--token", "main", "--model_revision", "main", "--domain", "maintenance"]
    assert redact_argv(argv) == ["--token", REDACTED, "--model_revision", "main", "--domain", "maintenance"]
    assert redact_text("the main domain", {"main"}) == "the main domain"


def test_shell_command_runs_once_the_variable_is_set():
    argv = [
        sys.executable,
        "-c",
        "import sys; print(sys.argv[1:])",
        "--hub-token",
        SECRET,
        f"--token={SECRET}x",
        "a b",
    ]
    line = shell_command(argv)
    assert SECRET not in line
    environment = {"HUB_TOKEN": "one", "TOKEN": "two words"}
    printed = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert printed.strip() == str(["--hub-token", "one", "--token=two words", "a b"])


def test_shell_command_without_secrets_splits_back_into_the_command():
    argv = ["train.py", "--note", "it's $HOME; `ls` *", "--adafactor=False", ""]
    assert shlex.split(shell_command(argv)) == argv


def test_mapping_is_redacted_at_every_depth_and_left_alone_itself():
    config = {
        "model": {"hf_access_token": SECRET, "name": f"host/{SECRET}", "use_auth_token": True, "token": None},
        "trackers": [{"wandb": {"api_key": "short"}}],
        "api_keys": {"one": SECRET + "1", "more": [SECRET + "2"]},
        "eos_token": "</s>",
        "seed": 0,
    }
    assert redact_mapping(config) == {
        "model": {
            "hf_access_token": REDACTED,
            "name": f"host/{REDACTED}",
            "use_auth_token": True,
            "token": None,
        },
        "trackers": [{"wandb": {"api_key": REDACTED}}],
        "api_keys": {"one": REDACTED, "more": [REDACTED]},
        "eos_token": "</s>",
        "seed": 0,
    }
    assert config["model"]["hf_access_token"] == SECRET


@pytest.mark.parametrize(
    "secret", ['qu"ote\\back', "o'clock rocks", "Schlüssel/+ &<b>", "new\nline!", "{brace}%s"]
)
def test_known_secret_is_found_however_a_format_spells_it(secret):
    import html
    import json
    from urllib.parse import quote

    for text in (secret, repr(secret), json.dumps([secret]), html.escape(secret), quote(secret, safe="")):
        redacted = redact_text(f"before {text} after", {secret})
        assert REDACTED in redacted
        assert redacted.startswith("before ")
        assert redacted.endswith(" after")
        assert text.strip("'\"[]") not in redacted


def test_secret_that_begins_another_leaves_no_tail():
    assert redact_text("abcdefgh abcdef", {"abcdef", "abcdefgh"}) == f"{REDACTED} {REDACTED}"


@pytest.mark.parametrize(
    "secret",
    [
        *("hf_" + "aB3" * 11, "sk-proj-" + "x7Y" * 10, "ghp_" + "a1" * 18),
        *("WANDB_API_KEY=" + "0f" * 20, "wandb: login " + "a1" * 20, "Bearer " + "tok3n" * 5),
        *("https://user:pass@host", "https://glpat-x1y2z3@host/group/project.git"),
    ],
)
def test_what_looks_like_a_token_is_taken_out_although_nobody_named_it(secret):
    value = secret.replace("https://", "").replace("@host", "").split("=")[-1].split(" ")[-1]
    assert value not in redact_text(f"error with {secret}.", set())


@pytest.mark.parametrize(
    "text",
    [
        *("revision " + "0f" * 20, "hf_internal_testing/tiny", "task-specific-learning-rates-are-fine-here"),
        *(
            "https://host:8080/path",
            "ssh://git@host/x",
            "see https://host/@me",
            "the token is short",
            "mail me@host",
        ),
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redact_text(text, {SECRET}) == text


@pytest.fixture
def log():
    """A stream behind a handler of a logger that does not propagate, as transformers' logger does not."""
    stream = io.StringIO()
    logger = logging.getLogger("test_secrets.library")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.propagate = False
    uninstall = install_log_filter(SecretVault([SECRET]))
    yield logger, stream
    uninstall()
    logger.removeHandler(handler)


def test_log_records_are_scrubbed_in_message_arguments_traceback_and_stack(log):
    logger, stream = log
    logger.error("plain %s and %s and %r", SECRET, 7, {"token": SECRET})
    logging.getLogger("test_secrets.library.child").error(f"twice {SECRET} {SECRET}")
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"bad {SECRET}") from error
    except ValueError:
        logger.exception("failed", stack_info=True)
    text = stream.getvalue()
    assert SECRET not in text
    assert "and 7 and" in text
    assert "ValueError: bad " + REDACTED in text
    assert "direct cause" in text


def test_records_without_secrets_keep_their_arguments_and_exception(log):
    logger, _ = log
    seen = []
    handler = logging.Handler()
    handler.emit = seen.append
    logger.addHandler(handler)
    try:
        raise ValueError("nothing to hide")
    except ValueError:
        logger.exception("at %d", 3)
    logger.removeHandler(handler)
    assert seen[0].args == (3,)
    assert isinstance(seen[0].exc_info[1], ValueError)


def test_arguments_that_do_not_fit_their_format_neither_raise_nor_leak():
    record = logging.makeLogRecord({"msg": "%d files", "args": (SECRET,)})
    assert SecretFilter(SecretVault([SECRET])).filter(record)
    assert SECRET not in str(vars(record))
    assert record.msg == "%d files"


def test_uncaught_exception_is_printed_without_the_secret():
    program = (
        "from rlhf_hw.secrets import SecretVault, install_log_filter\n"
        "secret = 'hunter2-is-' + 'long-enough'\n"
        "install_log_filter(SecretVault([secret]))\n"
        "raise RuntimeError('cannot log in with ' + secret)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 1
    assert SECRET not in result.stderr
    assert f"RuntimeError: cannot log in with {REDACTED}" in result.stderr


def test_uninstalling_gives_back_the_previous_record_factory_and_hook():
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    install_log_filter(SecretVault())()
    assert (logging.getLogRecordFactory(), sys.excepthook) == (factory, hook)
