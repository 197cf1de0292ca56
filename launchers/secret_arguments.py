"""Secrets on a command line: known by the name of the flag, variable or JSON key that they follow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

REDACTED = "<redacted>"

# The flags of the three stages and of transformers that take a credential.
SECRET_FLAGS = frozenset(
    {"hf_access_token", "token", "use_auth_token", "hub_token", "push_to_hub_token", "api_key", "password"}
)

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:token|passw(?:or)?ds?|passphrase|secrets?|credentials?|api_?keys?|auth|authorization|pat)$|_keys?$",
    re.IGNORECASE,
)
# Names of a tokenizer's own symbols; they end in "_token" and are no secret.
_VOCABULARY_NAME = re.compile(
    r"^(?:pad|eos|bos|unk|sep|cls|mask|eot|eom|stop|start|end|image|video|audio|decoder_start|prefix|suffix|middle)_token$"
)
_NOT_A_SECRET = frozenset(
    {"", "true", "false", "t", "f", "yes", "no", "y", "n", "0", "1", "none", "null", REDACTED}
)
# `--push_to_hub` is a switch of its own, although it begins like `--push_to_hub_token`.
_NOT_AN_ABBREVIATION = frozenset({"push_to_hub"})
#: A pair of what is nearly JSON: Python's quotes, YAML's none, a bracket too few.
_PAIR = re.compile(
    r"""([A-Za-z_][\w.-]*)["']?\s*[:=]\s*(\[[^\]}]*|"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,}\]"']+)"""
)
#: A flag as flags are written: lower-case words. What follows a secret's flag and is none is its value, dashes or not.
_FLAG = re.compile(r"--[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*(?:=.*)?$", re.DOTALL)
#: A word that no flag has: longer than any, or with digits amid its letters as keys have them.
_NO_FLAGS_WORD = re.compile(r"[a-z0-9]{20,}|(?=[a-z0-9]{10})[a-z]+\d[a-z]*\d[a-z]*\d")
_SHORTEST_ITEM = 6  # of a list within an argument; taking out every "a" of it would shred the argument
#: `NAME=value` further inside an argument: `--env=HF_TOKEN=x`, `--export=ALL,HF_TOKEN=x`; of a URL's the URL's pattern.
_ASSIGNMENT = re.compile(r"(?<![\w.?&-])([A-Za-z_][\w.-]*)=([^\s,;\"']{6,})")
# of a value, or of the one in `--flag=value`; in quotes of its own, where a shell took none away
_BRACKET = re.compile(r"(?:[^={\[]*=)?[\"']?(?=[{\[])")
_SHORTEST_ABBREVIATION = 4  # `--hf_a`; shorter ones are ambiguous, and argparse refuses them


def is_secret_name(name: str) -> bool:
    """Whether a flag, key or variable of this name holds a secret: `--hub-token`, `apiKey`, `HF_TOKEN`, `hub.token`."""
    words = (
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("-").rpartition(".")[2]).replace("-", "_").lower()
    )
    if _VOCABULARY_NAME.match(words):
        return False
    return words in SECRET_FLAGS or _SECRET_NAME.search(words) is not None


def is_secret_value(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return False
    return str(value).strip().lower() not in _NOT_A_SECRET


def _is_secret_flag(flag: str) -> bool:
    """As `is_secret_name`, and also the abbreviations argparse accepts (`--hf_access` for `--hf_access_token`)."""
    name = flag.lstrip("-").replace("-", "_").lower()
    if is_secret_name(name):
        return True
    if len(name) < _SHORTEST_ABBREVIATION or name in _NOT_AN_ABBREVIATION:
        return False
    return any(secret.startswith(name) for secret in SECRET_FLAGS)


def secret_arguments(argv: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(index, what precedes the secret in that argument, the secret) for each secret on the command line."""
    expects_secret = takes_several = False
    for index, argument in enumerate(argv):
        if expects_secret and not _is_a_flag(argument):
            if is_secret_value(argument):
                yield index, "", argument
            expects_secret = takes_several
            continue
        name, equals, value = argument.partition("=")
        is_flag = name.startswith("-")
        is_variable = name.replace(".", "_").isidentifier()
        names_a_secret = _is_secret_flag(name) if is_flag else is_variable and is_secret_name(name)
        if equals and names_a_secret and is_secret_value(value):
            yield index, name + "=", value
        expects_secret = is_flag and not equals and names_a_secret
        takes_several = expects_secret and name.endswith("s")  # --api_keys a b


def _is_a_flag(argument: str) -> bool:
    """Whether an argument with two dashes is the next flag, and not the value of the one before."""
    name = argument.partition("=")[0]
    return _FLAG.match(argument) is not None and _NO_FLAGS_WORD.search(name) is None


def json_arguments(argv: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
    """(index, what precedes it, the value) for each argument that is a JSON object or list: `--accelerator_config '{…}'`."""
    for index, prefix, text in _bracketed(argv):
        value = _parsed(text)
        if value is not None:
            yield index, prefix, value


def inner_secrets(argv: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, the secret) for each secret inside an argument: in a `NAME=value`, or in what is meant as JSON and is none
    (`{'hub_token': 'x'}`)."""
    for index, argument in enumerate(argv):
        for name, value in _ASSIGNMENT.findall(argument):
            if is_secret_name(name) and is_secret_value(value):
                yield index, value
    for index, _, text in _bracketed(argv):
        if _parsed(text) is None:
            for name, value in _PAIR.findall(text):
                if is_secret_name(name):
                    yield from ((index, secret) for secret in _values_in(value) if is_secret_value(secret))


def _values_in(value: str) -> list[str]:
    """The value of a pair without its quotes; of a list all that is in the brackets, then its items."""
    if not value.startswith("["):
        return [value.strip("\"'")]
    items = [item.strip().strip("\"'") for item in value[1:].split(",")]
    return [value[1:], *(item for item in items if len(item) >= _SHORTEST_ITEM)]


def _bracketed(argv: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    for index, argument in enumerate(argv):
        begin = _BRACKET.match(argument)
        if begin is not None:
            yield index, argument[: begin.end()], argument[begin.end() :]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
