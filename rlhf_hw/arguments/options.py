"""How one dataclass field becomes command-line options: conversions, error texts, and the layout of `--help`."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})
_MANY_CHOICES = 8  # more than this are not listed in an error or a heading


def parse_bool(text: str) -> bool:
    """`True/false/yes/no/t/f/y/n/1/0`, in any case."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(text)
    return word in _TRUE


def parse_number(text: str) -> float:
    """A float; "nan" is refused, because no setting means anything with it."""
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value


def parse_json_or_path(text: str) -> str:
    """What transformers takes for a dict: a JSON object (checked here, decoded by transformers) or a file's path."""
    if text.lstrip().startswith("{"):
        json.loads(text)
    return text


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def checked(
    convert: Callable[[str], T], expected: str, choices: Sequence[Any] | None = None
) -> Callable[[str], T]:
    """`convert`, but a value that does not fit is reported with what was expected."""

    def parse(text: str) -> T:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from None
        if choices is not None and value not in choices:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {_one_of(text, choices)}")
        return value

    return parse


def _one_of(text: str, choices: Sequence[Any]) -> str:
    names = [str(choice) for choice in choices]
    if len(names) <= _MANY_CHOICES:
        return f"one of {', '.join(names)}"
    guess = closest(text, names)
    return f"one of {len(names)} names" + (f" (did you mean {guess}?)" if guess else "")


def without_aliases(names: Iterable[str]) -> list[str]:
    """Option names for a heading: `--a-b` is left out where `--a_b` stands beside it."""
    names = list(names)
    underscored = {name for name in names if "_" in name}
    return [
        name for name in names if "_" in name or "--" + name[2:].replace("-", "_") not in underscored - {name}
    ]


def _members(hint: Any) -> tuple[Any, ...]:
    """The types a hint is the union of; the hint itself where it is none."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def refine(action: argparse.Action, hint: Any) -> None:
    """Give `action` a conversion that says what it expects, and a heading for the help."""
    members = _members(hint)
    kinds = [get_origin(member) or member for member in members]
    optional = type(None) in members
    action.may_be_null = optional  # type: ignore[attr-defined]
    action.takes_mapping = dict in kinds  # type: ignore[attr-defined]
    choices = None if action.choices is None else list(action.choices)
    if bool in kinds and str not in kinds:
        # a bare `--flag` means true for every switch, also for those whose default is "not said"
        action.nargs, action.const = "?", True
        action.type, action.metavar = checked(parse_bool, "true or false"), "[BOOL]"
    elif dict in kinds:
        action.type = checked(parse_json_or_path, "a JSON object or the path of a JSON file")
        action.metavar = "JSON|FILE"
    elif choices is not None:
        convert = action.type if callable(action.type) else str
        if {"true", "false"} <= set(choices):  # a switch with a third position takes True, as switches do
            action.type = checked(lambda text: text.strip().lower(), "one of the choices", choices)
        else:
            action.type = checked(convert, "one of the choices", choices)
        names = [str(choice) for choice in choices]
        if len(names) <= 6:
            action.metavar = "{" + ",".join(names) + "}"
        else:
            action.metavar = "NAME"
            action.help = f"{action.help} One of: {', '.join(names)}."
    elif list in kinds and action.nargs == "+":
        action.metavar = "NAME [NAME ...]"
        if action.type is int:
            action.type, action.metavar = checked(int, "whole numbers"), "INT [INT ...]"
    elif action.type is int:
        action.type, action.metavar = checked(int, "a whole number"), "INT"
    elif action.type is float:
        action.type, action.metavar = checked(parse_number, "a number"), "NUMBER"
    else:
        action.metavar = action.metavar or "TEXT"
    action.choices = None  # the conversion checks them, and says so in its own words


class StageHelp(argparse.HelpFormatter):
    """Headings like `--lora_rank, --lora_r INT`, the help below, and the default at its end."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, indent_increment=2, max_help_position=8, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = ", ".join(without_aliases(action.option_strings))
        return names if action.nargs == 0 else f"{names} {action.metavar or ''}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if "%(default)" in text or action.default in (None, "", argparse.SUPPRESS) or action.nargs == 0:
            return text
        return f"{text} (default: %(default)s)"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width)


class Store(argparse.Action):
    """Store a value and tell the parser under which spelling it came."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.spelled(self.dest, option_string, values)  # type: ignore[attr-defined]
        setattr(namespace, self.dest, values)


class StoreFalse(Store):
    """`--no_flag`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        # the complement of every true switch would double the help: it is told of once, in the epilog
        super().__init__(option_strings, dest, nargs=0, default=kwargs["default"], help=argparse.SUPPRESS)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, False, option_string)


def with_defaults(cls: type[T], defaults: dict[str, Any]) -> type[T]:
    """A subclass of dataclass `cls` whose fields have other defaults; help, spellings and types stay."""
    hints = get_type_hints(cls)
    changed = [
        (field.name, hints[field.name], _field(defaults[field.name], field.metadata))
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name in defaults
    ]
    return dataclasses.make_dataclass(cls.__name__, changed, bases=(cls,), kw_only=True)


def _field(default: Any, metadata: Any) -> Any:
    """A dataclass field with this default; a list is made anew for every instance."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
