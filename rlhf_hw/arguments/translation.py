"""Reading a command line in the dialect it is written in: its flags beside ours, and what they become."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlhf_hw.arguments.dialects.dialect import Dialect, Flag
from rlhf_hw.arguments.dialects.recognise import named, of_another, recognised
from rlhf_hw.arguments.options import checked, parse_bool, parse_number
from rlhf_hw.arguments.settling import Said, Settled
from rlhf_hw.errors import UserError

_READ: dict[str, tuple[Callable[[str], Any], str]] = {
    "text": (str, "a text"),
    "int": (int, "a whole number"),
    "number": (parse_number, "a number"),
    "switch": (parse_bool, "true or false"),
    "list": (str, "names"),
}


class Held(argparse.Action):
    """Keep the value of a flag that is no setting of ours, for the dialect to settle."""

    def __init__(self, name: str, flag: Flag) -> None:
        convert, expected = _READ[flag.kind]
        super().__init__(
            spellings(name),
            dest=name,
            nargs={"switch": "?", "list": "+"}.get(flag.kind),
            const=True if flag.kind == "switch" else None,
            type=checked(convert, expected, flag.choices or None),
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.hold(self.dest, values)  # type: ignore[attr-defined]


class Translation:
    """The dialect of one command line, and the words that are its own. Without a dialect every flag is one of ours.

    `lone`: the one flag of the dialect that stands among ours; then it is read so, and nothing else is.
    `onto_a_run`: the flags change the settings of a run whose file was given, and the dialect's defaults stay out.
    """

    def __init__(
        self,
        command: str,
        dialect: Dialect | None,
        told_by: str | None = None,
        *,
        lone: str | None = None,
        onto_a_run: bool = False,
    ) -> None:
        self.dialect = dialect
        self.flags: Mapping[str, Flag] = dialect.flags[command] if dialect is not None else {}
        if lone is not None:
            self.flags = {lone: self.flags[lone]}
        self.held: dict[str, Any] = {}
        self._command = command
        self._told_by = told_by
        self._lone = lone
        self._onto_a_run = onto_a_run

    @classmethod
    def of(
        cls,
        command: str,
        asked: str | None,
        spelled: Mapping[str, str],
        known: Iterable[str],
        *,
        onto_a_run: bool = False,
    ) -> Translation:
        """The one that was asked for, else the one that the flags tell.

        Raises:
            UserError: there is no such dialect, or the flags are of two, or one alone is no name of a setting of ours.
        """
        if asked is not None:
            return cls(command, named(asked, command), onto_a_run=onto_a_run)
        found = recognised(command, spelled, set(known))
        if found is None:
            return cls(command, None)
        if found.whole or onto_a_run:
            return cls(command, found.dialect, found.flag, onto_a_run=onto_a_run)
        flag, name = found.dialect.flags[command][found.flag], found.dialect.name
        if flag.setting is None and not flag.idle:
            raise UserError(
                f"--{found.flag}: a flag of {name}, and the only one here; say --dialect {name} to take its defaults too, or "
                f"what the flag becomes: {flag.note}"
            )
        return cls(command, found.dialect, lone=found.flag)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Setting → value, below file and command line."""
        if self.dialect is None or self._lone is not None or self._onto_a_run:
            return {}
        return self.dialect.defaults[self._command]

    def opening(self) -> tuple[str, ...]:
        """Which dialect is read, and why."""
        if self.dialect is None:
            return ()
        if self._lone is not None:
            setting = self.flags[self._lone].setting
            read = f", read as --{setting}" if setting else ""
            return (
                f"--{self._lone}: the only flag of {self.dialect.name} here{read}; other flags and all defaults are ours "
                f"(--dialect {self.dialect.name} takes that system's)",
            )
        told = "as asked" if self._told_by is None else f"told by --{self._told_by}; --dialect names another"
        if self._onto_a_run:
            return (
                f"dialect: {self.dialect.name}, the flags of {self.dialect.system} ({told}); settings that are not given are "
                "those of the run in the file",
            )
        return (f"dialect: {self.dialect.name}, the flags and defaults of {self.dialect.system} ({told})",)

    def settle(self, settings: Mapping[str, Any], given: frozenset[str]) -> Iterable[Settled]:
        """What the held flags become. `given`: settings the user gave, leaving out those of a run's own file."""
        if self.dialect is None or self._lone is not None:
            return ()
        for name, value in self.held.items():  # sizes, numbers and rates, all of them
            if isinstance(value, (int, float)) and value < 0:
                raise UserError(f"--{name}: got {shown(value)}, expected at least 0")
        said = Said(self.held, settings, given, processes(), onto_a_run=self._onto_a_run)
        return self.dialect.settle(self._command, said)

    def lines(self, values: Mapping[str, tuple[str, Any]]) -> list[str]:
        """A line for each flag that does nothing here, and for each that is one of ours with another meaning.

        `values`: setting → the spelling it was given under, and its value.
        """
        lines = [f"--{name}: {self.flags[name].note}" for name in self.held if self.flags[name].idle]
        for spelling, value in values.values():
            name = spelling[2:].replace("-", "_")
            flag = self.flags.get(name)
            if flag is not None and flag.setting not in (None, name) and flag.note:
                lines.append(f"--{name} {shown(value)}: here --{flag.setting}, {flag.note}")
        return lines

    def became(self, settled: Settled, done: Mapping[str, Any], given: Mapping[str, Any]) -> Iterable[str]:
        """The line on settings that were `done`; none on defaults that speak for themselves. `given`: own settings."""
        if settled.flags:
            values = {**given, **self.held}
            flags = " ".join(f"--{name} {shown(values[name])}" for name in settled.flags)
            here = " ".join(f"--{name} {shown(value)}" for name, value in done.items())
            yield f"{flags}: " + ", ".join(
                part for part in (f"here {here}" if here else "", settled.line) if part
            )
        elif settled.line:
            yield settled.line

    def hint(self, flag: str) -> str | None:
        """Whose flag it is, where it is none of this command line's dialect."""
        name = flag[2:].replace("-", "_")
        ours = "intel" if self.dialect is None or self._lone is not None else self.dialect.name
        other = of_another(self._command, name, [ours])
        return None if other is None else f"a flag of {other}, and this is read as {ours}; see --dialect"


def spellings(name: str) -> list[str]:
    """`--a_b`, and `--a-b` beside it."""
    return [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])


def first_words(
    argv: Sequence[str], settings: Sequence[tuple[str, Any]], ours: Iterable[str]
) -> dict[str, str]:
    """Flag without its dashes → the first word after it, on the command line and in the file.

    A file may hold every setting of `ours`, as the one that a run leaves does: from it come only names that are none.
    """
    words = {key.replace("-", "_"): str(value) for key, value in settings}
    words = {name: value for name, value in words.items() if name not in ours}
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            words[name.replace("-", "_")] = value if equals else following
    return words


def processes() -> int:
    """Of this run, as its launcher says."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"WORLD_SIZE: got {text!r}, expected a number of processes; leave it to the launcher")
    return int(text)


def shown(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
