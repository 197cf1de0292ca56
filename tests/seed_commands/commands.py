"""How the seeds' commands are written down: the command as its page has it, and what every word of it must mean here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SeedCommand:
    """One command. `stage`: the command of ours. `dialect`: as which it must be read. `settings`: "group.field" → value
    that it must come to; `lines`: parts of lines that the run must open with."""

    name: str
    stage: str
    dialect: str | None
    text: str
    settings: Mapping[str, Any]
    lines: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The script's arguments, as the shell hands them over."""
        text = self.text.replace("\\\n", " ")
        for name, value in self.variables.items():
            text = text.replace("${" + name + "}", value).replace(f"${name}", value)
        words = shlex.split(text.split("&>")[0])
        return words[next(i for i, word in enumerate(words) if word.endswith(".py")) + 1 :]
