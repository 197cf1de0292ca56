"""Settings that several flags of another system make together, or that one flag makes several of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Said:
    """What was given, once everything is read.

    `held`: values of flags that are no setting of ours, by name. `settings`: every setting's value so far. `given`: the
    settings the user gave, in any spelling. `processes`: of the run, all machines together. `onto_a_run`: `settings` are
    those of an earlier run where nothing else was given, and not the dialect's defaults.
    """

    held: Mapping[str, Any]
    settings: Mapping[str, Any]
    given: frozenset[str]
    processes: int
    onto_a_run: bool = False


@dataclass(frozen=True)
class Settled:
    """Settings that follow from `flags` (names; none: from defaults alone), and a line on why, where one is needed.

    They are given as those flags are: to give another value beside them is an error, unless they `yield_` (the other
    value then stands) or `replace` (these then stand).
    """

    flags: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""
    yields: bool = False
    replaces: bool = False
