"""Which system a command line is written for, told by the flags that only that system has."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from rlhf_hw.arguments.dialects import alpaca_farm, alpaca_rlhf, deepspeed_chat, intel
from rlhf_hw.arguments.dialects.dialect import Dialect
from rlhf_hw.errors import UserError

#: `--dialect NAME`
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (intel.DIALECT, deepspeed_chat.DIALECT, alpaca_rlhf.DIALECT, alpaca_farm.DIALECT)
}


def named(name: str, command: str) -> Dialect:
    """The dialect that `--dialect` names.

    Raises:
        UserError: there is no such dialect, or it has no such command.
    """
    known = [dialect.name for dialect in DIALECTS.values() if command in dialect.flags]
    if name not in known:
        raise UserError(f"--dialect: got {name!r}, expected one of {', '.join(known)}")
    return DIALECTS[name]


@dataclass(frozen=True)
class Recognised:
    """A dialect, and the `flag` that told it. `whole`: the command line is that system's; else that one flag alone is.

    One flag may be a habit of someone who writes our command lines, and must not change every default: the system is
    taken to be another's by two of its flags, or by one that all its command lines have.
    """

    dialect: Dialect
    flag: str
    whole: bool


def recognised(command: str, spelled: Mapping[str, str], known: Container[str]) -> Recognised | None:
    """Whose command line it is; None where every flag is one of ours.

    `spelled`: flag without dashes → its first word. `known`: names that flags of ours have, or that mean too many things
    to tell anything.

    Raises:
        UserError: the flags of two systems are mixed.
    """
    told = {
        dialect.name: [
            name
            for name in spelled
            if name in dialect.flags[command] and (name not in known or name in dialect.tells)
        ]
        for dialect in DIALECTS.values()
        if command in dialect.flags and dialect.base is None
    }
    told = {name: flags for name, flags in told.items() if flags}
    if len(told) > 1:
        (one, its), (other, others) = list(told.items())[:2]
        raise _mixed(its[0], one, others[0], other)
    if not told:
        return None
    (name, flags) = next(iter(told.items()))
    for variant in DIALECTS.values():
        mark = _mark(variant, command, spelled) if variant.base == name else None
        if mark is not None:
            foreign = [flag for flag in flags if flag not in variant.flags[command]]
            if foreign:
                raise _mixed(mark, variant.name, foreign[0], name)
            return Recognised(variant, mark, whole=True)
    dialect = DIALECTS[name]
    if len(flags) > 1 or dialect.decisive.intersection(flags):
        return Recognised(dialect, flags[0], whole=True)
    return None if flags[0] in known else Recognised(dialect, flags[0], whole=False)


def of_another(command: str, name: str, but: Sequence[str]) -> str | None:
    """The dialect whose flag `name` is, leaving out `but`."""
    for dialect in DIALECTS.values():
        if dialect.name not in but and name in dialect.flags.get(command, {}):
            return dialect.name
    return None


def _mark(variant: Dialect, command: str, spelled: Mapping[str, str]) -> str | None:
    """The flag that tells `variant` from its base."""
    marks = variant.marks.get(command, {})
    return next((name for name, part in marks.items() if name in spelled and part in spelled[name]), None)


def _mixed(flag: str, dialect: str, other_flag: str, other: str) -> UserError:
    return UserError(
        f"--{flag} is a flag of {dialect} and --{other_flag} one of {other}; leave one out, or say with --dialect whose "
        "command line this is"
    )
