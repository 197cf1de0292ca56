"""Secrets known by their value, wherever that turns up, and what merely looks like one."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from launchers.secret_arguments import (
    REDACTED,
    inner_secrets,
    is_secret_name,
    is_secret_value,
    json_arguments,
    secret_arguments,
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
    # scheme://user:password@host; as browsers and Python read it, the host begins behind the last @
    re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/?#:@\"']*:[^\s/?#\"']+(?=@)"),
    # https://token@host, as Git's hosts take one; the name alone before a host of another scheme (ssh://git@) is none
    re.compile(r"(?i)(\b(?:[a-z0-9.-]+\+)?https?://)[^\s/?#:\"']+(?=@)"),
    # …?token=…, and the signature of a link that opens a private file
    re.compile(
        r"(?i)([?&](?:[a-z0-9_-]*[_-])?(?:token|password|secret|api_?key|access_?key|signature|sig)=)[^&#\s\"']+"
    ),
)


def redact_mapping(mapping: Mapping[Any, Any], known: Iterable[str] = ()) -> dict[Any, Any]:
    """A copy without secrets, however deep: whatever stands under a secret's name, and `known` values in any string."""
    vault = known if isinstance(known, SecretVault) else SecretVault(known)
    vault.learn_mapping(mapping)
    return redact_nested(mapping, vault)


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
            for _, _, listed in json_arguments([value]):  # --api_keys '["one", "two"]'
                for leaf in _leaves(listed):
                    self.add(leaf)
        for _, secret in inner_secrets(argv):
            self.add(secret)
        for _, _, value in json_arguments(argv):
            for mapping in _mappings_in(value):
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


def redact_nested(value: Any, vault: SecretVault, *, secret: bool = False) -> Any:
    """A copy of mappings and lists without what stands under a secret's name, or what the vault knows; sets become lists."""
    if isinstance(value, Mapping):
        return {
            redact_nested(name, vault): redact_nested(item, vault, secret=secret or is_secret_name(str(name)))
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact_nested(item, vault, secret=secret) for item in value]
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
