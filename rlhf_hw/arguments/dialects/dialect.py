"""What a dialect is: another system's flags, what each is here, and its defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_hw.arguments.settling import Said, Settled

Kind = Literal["text", "int", "number", "switch", "list"]


@dataclass(frozen=True)
class Flag:
    """One flag of a script.

    `setting`: the setting of ours that it is a name of, and which reads its value. Without one the value is read as
    `kind` says (one of `choices`, where there are any), and the dialect settles what it becomes; an `idle` flag becomes
    nothing. `note`: what it becomes, or for an idle flag what happens instead: one line for the user.
    """

    setting: str | None = None
    kind: Kind = "text"
    note: str = ""
    choices: tuple[str, ...] = ()
    idle: bool = False


def own(*names: str) -> dict[str, Flag]:
    """Flags that are called and mean the same here."""
    return {name: Flag(setting=name) for name in names}


def same(setting: str, note: str = "") -> Flag:
    """Another name of a setting of ours."""
    return Flag(setting=setting, note=note)


def becomes(kind: Kind, note: str, *choices: str) -> Flag:
    """A flag that has no one setting here: `Dialect.settle` says what it becomes."""
    return Flag(kind=kind, note=note, choices=choices)


def idle(kind: Kind, note: str) -> Flag:
    """A flag that is taken and changes nothing; `note` says what happens instead."""
    return Flag(kind=kind, note=note, idle=True)


def nothing_to_settle(command: str, said: Said) -> Iterable[Settled]:
    """Of a dialect whose flags are all names of single settings."""
    return ()


@dataclass(frozen=True)
class Dialect:
    """The scripts of one system.

    `flags`: command of ours → flag of that system's script (without its dashes) → what it is.
    `defaults`: command → setting → value, below configuration file and command line.
    `settle`: turns the values of flags that are no one setting into settings.
    `tells`: flags that we have too, but that are typed by those alone who come from this system.
    `decisive`: flags that no command line of this system is without, and none of ours has: one of them says whose it is.
    `base`: the dialect it is a variant of, from which `marks` tell it: command → flag → text that its value holds.
    """

    name: str
    system: str
    flags: Mapping[str, Mapping[str, Flag]]
    defaults: Mapping[str, Mapping[str, Any]]
    settle: Callable[[str, Said], Iterable[Settled]] = nothing_to_settle
    tells: frozenset[str] = frozenset()
    decisive: frozenset[str] = frozenset()
    base: str | None = None
    marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
