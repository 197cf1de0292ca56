"""Keeping secrets out of everything a run writes: commands, configurations, texts and log records.

A secret is known by the *name* it is given under (`--hf_access_token`, `WANDB_API_KEY`), and from then on by its
*value*, wherever that value turns up. What merely looks like a credential is taken out of texts as well.
"""

from __future__ import annotations

import html
import json
import logging
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

from launchers.secret_arguments import (
    REDACTED,
    is_secret_name,
    is_secret_value,
    secret_arguments,
    secrets_as_variables,
)

# A shorter value is likely an ordinary word ("main", "test"): taking it out of every text would shred the text,
# so it is hidden only where it stands as the value of its flag.
SHORTEST_SCRUBBED = 6

_LOOKS_LIKE_A_SECRET = (
    re.compile(r"(?<![A-Za-z0-9])()hf_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])()sk-(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}"),
    re.compile(r"(?<![A-Za-z0-9])()(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}"),
    re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{16,}"),
    # wandb's keys are 40 hexadecimal digits, and so is a git commit: only beside a word that tells them apart.
    re.compile(r"(?i)((?:wandb|key|token|login|password|secret)\W{0,12})[0-9a-f]{40}(?![0-9a-f])"),
    re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/:@]*:[^\s/@]+(?=@)"),  # scheme://user:password@host
)


def redact_argv(argv: Sequence[str]) -> list[str]:
    """`argv` with the secrets taken out, in `--flag value`, `--flag=value`, `NAME=value` and JSON arguments."""
    redacted = list(argv)
    vault = SecretVault()
    vault.learn_argv(argv)
    for index, prefix, _ in secret_arguments(argv):
        redacted[index] = prefix + REDACTED
    for index, prefix, mapping in _json_arguments(redacted):
        redacted[index] = prefix + json.dumps(redact_mapping(mapping))
    return [argument if argument.endswith(REDACTED) else vault.scrub(argument) for argument in redacted]


def shell_command(argv: Sequence[str]) -> str:
    """As the launchers' `shell_command`, without the secrets in JSON arguments and wherever else they recur."""
    words = [shlex.quote(word) for word in redact_argv(argv)]
    for index, word in secrets_as_variables(argv):
        words[index] = word
    return " ".join(words)


def redact_mapping(mapping: Mapping[Any, Any], known: Iterable[str] = ()) -> dict[Any, Any]:
    """A copy without secrets, however deep: whatever stands under a secret's name, and `known` values in any string."""
    vault = known if isinstance(known, SecretVault) else SecretVault(known)
    vault.learn_mapping(mapping)
    return _redact_nested(mapping, vault)


def redact_text(text: str, known: Iterable[str]) -> str:
    """`text` without the `known` secrets and without anything that looks like one (hf_…, sk-…, user:password@host)."""
    pattern = _any_of(known)
    if pattern is not None:
        text = pattern.sub(REDACTED, text)
    for shape in _LOOKS_LIKE_A_SECRET:
        text = shape.sub(rf"\g<1>{REDACTED}", text)
    return text


class SecretVault:
    """The secrets this process has been given, so that they can be recognised wherever they turn up."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        for value in values:
            self.add(value)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def add(self, value: object) -> None:
        """Remember one secret; None, booleans and the words that mean them are no secrets (`--use_auth_token True`)."""
        if is_secret_value(value):
            self._values.add(str(value))

    def learn_argv(self, argv: Sequence[str]) -> None:
        """Remember the values of the secret flags on a command line."""
        for _, _, value in secret_arguments(argv):
            self.add(value)
        for _, _, mapping in _json_arguments(argv):
            self.learn_mapping(mapping)

    def learn_mapping(self, mapping: Mapping[Any, Any]) -> None:
        """Remember what stands under secret names in a nested configuration."""
        for name, value in mapping.items():
            if is_secret_name(str(name)):
                for leaf in _leaves(value):
                    self.add(leaf)
            else:
                for child in _mappings_in(value):
                    self.learn_mapping(child)

    def scrub(self, text: str) -> str:
        """`text` without any secret known here or anything that looks like one."""
        return redact_text(text, self._values)

    def scrub_nested(self, value: Any) -> Any:
        """`value` with every string in it scrubbed; secret *names* play no part (a metric may end in "_token")."""
        if isinstance(value, str):
            return self.scrub(value)
        if isinstance(value, Mapping):
            return {self.scrub_nested(name): self.scrub_nested(item) for name, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.scrub_nested(item) for item in value]
        return value


class SecretFilter(logging.Filter):
    """Scrubs a log record in place: message, arguments, traceback and stack. Never drops a record."""

    def __init__(self, vault: SecretVault) -> None:
        super().__init__()
        self.vault = vault

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit their format: logging reports it later, with both
            record.msg, record.args = self.vault.scrub(str(record.msg)), self._scrub_arguments(record.args)
        else:
            clean = self.vault.scrub(message)
            if clean != message:
                record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            clean = self.vault.scrub(text)
            if (
                clean != text
            ):  # handlers that draw tracebacks themselves would read exc_info: leave them the text
                record.exc_text, record.exc_info = clean, None
        if record.exc_text:
            record.exc_text = self.vault.scrub(record.exc_text)
        if record.stack_info:
            record.stack_info = self.vault.scrub(record.stack_info)
        return True

    def _scrub_arguments(self, arguments: Any) -> Any:
        if isinstance(arguments, Mapping):
            return {name: self.vault.scrub(str(value)) for name, value in arguments.items()}
        return tuple(self.vault.scrub(str(value)) for value in arguments or ())


def install_log_filter(vault: SecretVault) -> Callable[[], None]:
    """Scrub every log record of this process, and the traceback of an uncaught exception.

    A filter on a logger misses its children's records, and one on a handler misses handlers that come later;
    so the filter sits where records are made. Returns a function that takes it away again.
    """
    previous_factory, previous_hook = logging.getLogRecordFactory(), sys.excepthook
    secret_filter = SecretFilter(vault)

    def make_scrubbed_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = previous_factory(*args, **kwargs)
        secret_filter.filter(record)
        return record

    def print_scrubbed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        clean = vault.scrub(text)
        if clean == text:
            previous_hook(kind, error, trace)
        else:
            sys.stderr.write(clean)

    def uninstall() -> None:
        if logging.getLogRecordFactory() is make_scrubbed_record:
            logging.setLogRecordFactory(previous_factory)
        if sys.excepthook is print_scrubbed:
            sys.excepthook = previous_hook

    logging.setLogRecordFactory(make_scrubbed_record)
    sys.excepthook = print_scrubbed
    return uninstall


# ---------------------------------------------------------------------------------------------------------------------


def _json_arguments(argv: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(index, what precedes it, the object) for each argument that is a JSON object: `--accelerator_config '{…}'`."""
    for index, argument in enumerate(argv):
        prefix, brace, rest = argument.partition("{")
        if brace and (not prefix or prefix.endswith("=")):
            try:
                value = json.loads(brace + rest)
            except ValueError:
                continue
            yield index, prefix, value


def _mappings_in(value: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _mappings_in(item)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _redact_nested(value: Any, vault: SecretVault, *, secret: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {
            _redact_nested(name, vault): _redact_nested(
                item, vault, secret=secret or is_secret_name(str(name))
            )
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redact_nested(item, vault, secret=secret) for item in value]
    if secret and is_secret_value(value):
        return REDACTED
    return vault.scrub(value) if isinstance(value, str) else value


def _any_of(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the secrets as they are and as JSON, repr, HTML and URLs spell them; the longest comes first."""
    spellings: set[str] = set()
    for secret in secrets:
        if len(secret) >= SHORTEST_SCRUBBED:
            spellings |= {
                secret,
                json.dumps(secret)[1:-1],
                json.dumps(secret, ensure_ascii=False)[1:-1],
                repr(secret)[1:-1],
                html.escape(secret),
                quote(secret, safe=""),
            }
    if not spellings:
        return None
    return re.compile("|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)))
