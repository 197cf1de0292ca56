"""`StageParser`: dataclasses to a command line, with a configuration file below it and one-line errors."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from rlhf_hw.arguments import config_file
from rlhf_hw.arguments.defaults import Defaults, said
from rlhf_hw.arguments.options import (
    StageHelp,
    Store,
    StoreFalse,
    checked,
    closest,
    parse_bool,
    refine,
)
from rlhf_hw.arguments.presets import PRESETS
from rlhf_hw.arguments.settling import Settled
from rlhf_hw.arguments.training import TrainingFlags
from rlhf_hw.arguments.translation import Held, Translation, first_words, shown, spellings
from rlhf_hw.errors import UserError
from rlhf_hw.secrets import is_secret_name

T = TypeVar("T")

_COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Parsed:
    """What was parsed: an instance a group, the names of the settings given (file or command line), the dry run.

    `opening`: lines to show before all others, on what the settings were read as.
    """

    groups: tuple[Any, ...]
    given: frozenset[str]
    dry_run: bool
    opening: tuple[str, ...] = ()

    def __getitem__(self, group: type[T]) -> T:
        """The instance of `group`, or of the stage's variant of it."""
        return next(instance for instance in self.groups if isinstance(instance, group))


class StageParser(HfArgumentParser):
    """The parser of one command.

    Over `HfArgumentParser` it adds: `--config FILE` (or a file as the first word) below the command line, one-line
    errors with a guess at what was meant, switches that all work bare, and an error where one setting is given
    twice under two spellings with different values.
    """

    def __init__(
        self,
        command: str,
        groups: Sequence[type],
        *,
        description: str,
        example: str,
        elsewhere: dict[str, str] | None = None,
    ) -> None:
        """`elsewhere`: flags that other commands have and this one has not, with what to use here."""
        self._command = command
        self._elsewhere = elsewhere or {}
        self._origin = _COMMAND_LINE
        self._spellings: dict[str, tuple[str, Any]] = {}
        self._given: set[str] = set()
        self._lowered: set[str] = set()
        #: settings in the file that an earlier run left
        self._of_the_run: frozenset[str] = frozenset()
        #: setting → where it was given last, as what, and its value
        self._said: dict[str, tuple[str, str, Any]] = {}
        #: flag of a dialect → where it was given last
        self._held_at: dict[str, str] = {}
        self._translation = Translation(command, None)
        super().__init__(
            list(groups),
            prog=f"rlhf-hw {command}",
            usage=f"rlhf-hw {command} [FILE.yaml] [--config FILE.yaml] [--flag value | --flag=value] ...",
            description=description,
            epilog=(
                "A switch can be given bare (--bf16), with a word (--bf16 true, --bf16=False), and, where its default "
                f"is True, be turned off as --no_FLAG. Dashes may stand for underscores. Example: {example}"
            ),
            formatter_class=StageHelp,
            allow_abbrev=False,
            exit_on_error=False,
        )
        general = self.add_argument_group("Command")
        general.add_argument(
            "--config",
            metavar="FILE",
            help="Settings from a YAML or JSON file (flag: value, groups allowed); the command line beats it. The "
            "file may also be the first word of the command line.",
        )
        presets = [name for name, commands in PRESETS.items() if command in commands]
        if presets:
            general.add_argument(
                "--dialect",
                metavar="NAME",
                help="Whose flags and defaults these are: intel (our own names), deepspeed-chat, alpaca-rlhf or "
                "alpaca-farm (docs/coming-from.md). Not said: told by the flags.",
            )
            general.add_argument(
                "--preset",
                metavar="NAME",
                help="The settings of a known system in place of this command's defaults; a file and the command line "
                f"beat them. One of: {', '.join(presets)}.",
            )
        general.add_argument(
            "--dry_run",
            "--dry-run",
            type=checked(parse_bool, "true or false"),
            nargs="?",
            const=True,
            default=False,
            metavar="[BOOL]",
            help="Check the settings and the data, say what would be done, and stop before a model loads.",
        )
        self._options = {name: action for action in self._actions for name in action.option_strings}
        self._required = [action for action in self._actions if action.required]
        for action in self._required:  # checked after file and command line have both been read
            action.required = False

    def _add_dataclass_arguments(self, dtype: type) -> None:
        self.register("action", None, Store)
        self.register("action", "store_false", StoreFalse)
        super()._add_dataclass_arguments(dtype)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        hint = field.type
        before = len(parser._actions)
        HfArgumentParser._parse_dataclass_field(parser, field)
        refine(parser._actions[before], hint)

    # ------------------------------------------------------------------ parsing

    def parse(self, argv: Sequence[str] | None = None) -> Parsed:
        """Parse `argv` (default: this process's). Bad input ends the process: one line, exit status 2."""
        argv = list(sys.argv[1:] if argv is None else argv)
        namespace = argparse.Namespace()
        try:
            path, argv = _take_config(argv)
            file = config_file.FileSettings([], of_a_run=False)
            if path is not None:
                file = config_file.read_settings(path, self._takes_mapping)
            if not file.of_a_run:
                self._learn(argv, file)
            layers = self._layers(said("preset", argv, file.settings))
            for layer in layers:
                self._lower(layer, namespace)
            if path is not None:
                self._read_file(path, file.settings, namespace)
            if file.of_a_run:  # its keys are our names, whosever flags stand on the command line
                self._take_for_a_run(namespace)
                self._learn(argv, file)
            self._read(argv, namespace, _COMMAND_LINE)
            lines = [*self._translation.opening(), *(line for layer in layers for line in layer.lines)]
            opening = lines + self._settle(namespace)
        except UserError as problem:
            self.error(str(problem))
        missing = [action for action in self._required if getattr(namespace, action.dest) is None]
        if missing:
            names = " and ".join(action.option_strings[0] for action in missing)
            self.error(f"{names}: required, but not given")
        given = frozenset(self._given)
        groups = []
        for dtype in self.dataclass_types:
            fields = [field.name for field in dataclasses.fields(dtype) if field.init]
            group = dtype(**{name: getattr(namespace, name) for name in fields})
            if isinstance(group, TrainingFlags):
                group.given = (given | self._lowered).intersection(fields)
            groups.append(group)
        return Parsed(tuple(groups), given, namespace.dry_run, tuple(opening))

    def checked(self, run: T, check: Callable[[T], None]) -> T:
        """`run`, if `check` finds no fault in it; else the process ends with one line and exit status 2."""
        try:
            check(run)
        except UserError as problem:
            self.error(str(problem))
        return run

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit status 2."""
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split())}; see --help\n")
        raise SystemExit(2)

    def spelled(self, dest: str, spelling: str | None, value: Any) -> None:
        """Note that a setting was given; refuse two spellings that disagree."""
        spelling = spelling or dest
        before, earlier = self._spellings.setdefault(dest, (spelling, value))
        if before != spelling and earlier != value:
            values = "" if is_secret_name(dest) else f" ({earlier} and {value})"
            raise UserError(
                f"{self._place()}{before} and {spelling} are one setting with two values{values}; give one"
            )
        self._spellings[dest] = (spelling, value)
        self._said[dest] = (self._origin, spelling, value)
        self._given.add(dest)

    def hold(self, name: str, value: Any) -> None:
        """Keep the value of a dialect's flag that is no setting of ours."""
        self._translation.held[name] = value
        self._held_at[name] = self._origin

    # ------------------------------------------------------------------ dialects

    def _learn(self, argv: Sequence[str], file: config_file.FileSettings) -> None:
        """Find out whose command line this is, and take that system's flags."""
        if "--preset" not in self._options:
            return
        words = first_words(argv, file.settings, {action.dest for action in self._actions})
        known = [name[2:] for name in (*self._options, *self._elsewhere)]
        asked = said("dialect", argv, file.settings)
        self._translation = Translation.of(self._command, asked, words, known, onto_a_run=file.of_a_run)
        for name, flag in self._translation.flags.items():
            if flag.setting is None:
                action: argparse.Action = Held(name, flag)
            elif flag.setting == name:
                continue
            else:
                action = self._options[f"--{flag.setting}"]
            for spelling in spellings(name):
                self._options[spelling] = self._option_string_actions[spelling] = action

    def _settle(self, namespace: argparse.Namespace) -> list[str]:
        """Let the dialect make settings of the flags that are none; lines on what was read as what."""
        lines: list[str] = []
        given = {dest: value for dest, (_, _, value) in self._said.items()}
        typed = {name for name, (origin, _, _) in self._said.items() if origin == _COMMAND_LINE}
        said_here = frozenset(self._given - (self._of_the_run - typed))
        for settled in self._translation.settle(vars(namespace), said_here):
            done = {
                name: value for name, value in settled.settings.items() if self._takes(settled, name, value)
            }
            for name, value in done.items():
                setattr(namespace, name, value)
                (self._given if settled.flags and not settled.yields else self._lowered).add(name)
            if done or (settled.flags and settled.line):
                lines += self._translation.became(settled, done, given)
        values = {dest: (spelling, value) for dest, (_, spelling, value) in self._said.items()}
        return self._translation.lines(values) + lines

    def _takes(self, settled: Settled, name: str, value: Any) -> bool:
        """Whether setting `name` becomes what was settled; refused where as much says otherwise."""
        if name not in self._said or settled.replaces:
            return True
        origin, spelling, other = self._said[name]
        from_here = [flag for flag in settled.flags if self._held_at.get(flag) == _COMMAND_LINE]
        if settled.yields or not settled.flags or (origin == _COMMAND_LINE and not from_here):
            return False
        if other == value or (origin != _COMMAND_LINE and from_here):
            return True
        raise UserError(
            f"{spelling} {shown(other)} and --{settled.flags[0]}, which is --{name} {shown(value)} here, contradict each "
            "other; give one"
        )

    def _layers(self, preset: str | None) -> list[Defaults]:
        """The defaults that take the place of the groups' own, the lowest first."""
        translation = self._translation
        layers = []
        if translation.dialect is not None:
            layers.append(Defaults(f"dialect {translation.dialect.name}", translation.defaults))
        if preset is None:
            return layers
        known = [name for name, commands in PRESETS.items() if self._command in commands]
        if preset not in known:
            raise UserError(f"--preset: got {preset!r}, expected one of {', '.join(known)}")
        line = f"preset {preset}: its settings stand where no flag and no file says otherwise"
        return [*layers, Defaults(f"--preset {preset}", PRESETS[preset][self._command], (line,))]

    def _lower(self, layer: Defaults, namespace: argparse.Namespace) -> None:
        """Put `layer` below whatever is read afterwards."""
        unknown = sorted(layer.settings.keys() - {action.dest for action in self._actions})
        if unknown:
            raise ValueError(f"{layer.origin}: {self.prog} has no settings {unknown}")
        for name, value in layer.settings.items():
            setattr(namespace, name, copy.copy(value))
        self._lowered |= layer.settings.keys()

    def _read(self, argv: list[str], namespace: argparse.Namespace, origin: str) -> None:
        self._origin, self._spellings = origin, {}
        try:
            _, rest = self.parse_known_args(argv, namespace)
        except argparse.ArgumentError as problem:
            raise UserError(f"{self._place()}{self._as_typed(problem, argv)}: {problem.message}") from None
        if rest:
            raise UserError(self._unknown(rest))

    def _read_file(
        self, path: str, settings: Sequence[tuple[str, Any]], namespace: argparse.Namespace
    ) -> None:
        argv: list[str] = []
        nulls: list[argparse.Action] = []
        for key, value in settings:
            action = self._options.get(f"--{key}")
            if action is None or key in ("config", "help"):
                known = (name[2:] for name in self._options)
                raise UserError(f"{path}: {key}: {self._hint(f'--{key}', closest(key, known), 'key')}")
            if isinstance(value, list) and action.nargs != "+":
                raise UserError(f"{path}: {key}: got a list, expected one value; give one")
            if value is None:
                nulls.append(action)
            elif value != []:
                argv += config_file.words(key, value)
        self._read(argv, namespace, path)
        for action in nulls:
            if action.default is not None and not getattr(action, "may_be_null", False):
                raise UserError(
                    f"{path}: {action.dest}: got null, expected a value; give one or leave it out"
                )
            setattr(namespace, action.dest, None)
            self._given.add(action.dest)

    def _take_for_a_run(self, namespace: argparse.Namespace) -> None:
        """What was read so far is the file of a run, which holds every setting: only those that differ from ours were
        said by someone. (Of training flags it holds what was said; a trainer's own defaults may differ from ours.)
        """
        defaults = {
            action.dest: action.default for action in reversed(self._actions)
        }  # of --FLAG, not --no_FLAG
        training = {
            field.name
            for group in self.dataclass_types
            if issubclass(group, TrainingFlags)
            for field in dataclasses.fields(group)
        }
        self._given = {
            name for name in self._given if name in training or getattr(namespace, name) != defaults[name]
        }
        self._of_the_run = frozenset(self._given)

    def _takes_mapping(self, key: str) -> bool:
        action = self._options.get(f"--{key.removeprefix('--')}")
        return action is not None and getattr(action, "takes_mapping", False)

    # ------------------------------------------------------------------ messages

    def _place(self) -> str:
        return "" if self._origin == _COMMAND_LINE else f"{self._origin}: "

    def _as_typed(self, problem: argparse.ArgumentError, argv: list[str]) -> str:
        """The spelling the user gave, of the option that argparse names by all its spellings."""
        names = (problem.argument_name or "").split("/")
        names += [name for name, action in self._options.items() if names[0] in action.option_strings]
        return next((n for n in names if any(w == n or w.startswith(f"{n}=") for w in argv)), names[0])

    def _unknown(self, rest: list[str]) -> str:
        flag = next((word.split("=")[0] for word in rest if word.startswith("--")), None)
        if flag is None:
            return (
                f"got the word {rest[0]!r} without a flag; settings are --flag value, and a file goes first"
            )
        return f"{flag}: {self._hint(flag, closest(flag, self._options), 'flag')}"

    def _hint(self, flag: str, guess: str | None, kind: str) -> str:
        known_elsewhere = self._elsewhere.get("--" + flag[2:].replace("-", "_"))
        if known_elsewhere:
            return f"not a {kind} of this command: {known_elsewhere}"
        whose = self._translation.hint(flag)
        if whose:
            return whose
        return f"unknown {kind}" + (f"; did you mean {guess}?" if guess else "")


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The configuration file that the command line names, and the other words."""
    paths: list[str] = []
    rest: list[str] = []
    ranks = {
        word for word in argv if word.startswith("--local_rank=")
    }  # put in front by DeepSpeed's launcher
    words = iter(argv)
    for word in words:
        if word == "--config":
            paths.append(next(words, ""))
        elif word.startswith("--config="):
            paths.append(word.removeprefix("--config="))
        elif not set(rest) - ranks and word.endswith(config_file.SUFFIXES) and not word.startswith("-"):
            paths.append(word)
        else:
            rest.append(word)
    if len(paths) > 1:
        raise UserError(f"--config: got {len(paths)} files ({', '.join(paths)}); give one")
    if paths == [""]:
        raise UserError("--config: got nothing, expected the path of a YAML or JSON file")
    return (paths[0] if paths else None), rest
