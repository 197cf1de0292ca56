"""Commands as they may be shown to anyone: in a launcher's announcement, a dry run, a run directory."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from urllib.parse import quote, unquote

from launchers.secret_arguments import REDACTED, inner_secrets, json_arguments, secret_arguments
from launchers.secret_values import SecretVault, redact_nested

#: Before words that are percent-encoded: `launchers.rank`, as `launchers.deepspeed` starts it on several machines.
QUOTED = "--quoted"


def redact_argv(argv: Sequence[str]) -> list[str]:
    """`argv` with the secrets taken out: in `--flag value`, `--flag=value`, `NAME=value`, JSON and URLs."""
    redacted = list(argv)
    vault = SecretVault()
    vault.learn_argv(argv)
    for index, prefix, _ in secret_arguments(argv):
        redacted[index] = prefix + REDACTED
    for index, prefix, value in json_arguments(redacted):
        clean = redact_nested(value, vault)
        if clean != value:
            redacted[index] = prefix + json.dumps(clean)
    for index, secret in inner_secrets(argv):
        redacted[index] = redacted[index].replace(secret, REDACTED)
    return [vault.scrub(argument) for argument in redacted]


def shell_command(argv: Sequence[str]) -> str:
    """A line to paste into a shell, without secrets.

    A flag's or a variable's has become a shell variable named after it (`"$HF_ACCESS_TOKEN"`), to be set first; where
    one is a part of an argument (JSON, a URL) or stands a second time, `<redacted>` is to be replaced.
    """
    plain = _decoded(argv)
    words = []
    for argument, meant, clean in zip(argv, plain, redact_argv(plain), strict=True):
        if clean == meant:
            words.append(shlex.quote(argument))
        else:  # percent-encoded again where it was
            words.append(shlex.quote(clean if argument == meant else quote(clean, safe="/=-,.:_~+@<>")))
    for index, word in _secrets_as_variables(plain):
        words[index] = word
    return " ".join(words)


def _decoded(argv: Sequence[str]) -> list[str]:
    """The words as they are meant."""
    words = list(argv)
    if QUOTED in words:
        start = words.index(QUOTED) + 1
        words[start:] = [unquote(word) for word in words[start:]]
    return words


def _secrets_as_variables(argv: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, the argument for a shell with a variable in the secret's place) for each secret on the command line."""
    for index, prefix, _ in secret_arguments(argv):
        if not prefix and not argv[index - 1].startswith("-"):
            continue  # one more value of the same flag
        name = (prefix or argv[index - 1]).strip("-=").replace("-", "_").replace(".", "_").upper()
        yield index, f'{prefix}"${name}"'
