"""Defaults below a configuration file and the command line: those of a preset, or of the system a command line is from.

From lowest to highest a setting comes from: its dataclass field, a layer of `Defaults`, the file after `--config`, the
command line. What a layer sets does not count as given by the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defaults:
    """One layer. `settings`: field name → value of its type, of any group of the command. `origin` names the layer in
    errors; `lines` are shown to the user before all others."""

    origin: str
    settings: Mapping[str, Any]
    lines: tuple[str, ...] = ()


def said(name: str, argv: Sequence[str], settings: Sequence[tuple[str, Any]]) -> str | None:
    """The value of `--name`, read ahead of all flags: the command line's last, else the file's; None without either."""
    value = next((str(held) for key, held in settings if key == name and held is not None), None)
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        if word == f"--{name}":
            value = following
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value
