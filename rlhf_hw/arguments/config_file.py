"""A YAML or JSON file of settings, as the command-line words that mean the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_hw.errors import UserError

SUFFIXES = (".yaml", ".yml", ".json")
#: by these groups the config.yaml is told that a run left in its directory
_OF_A_RUN = ("model", "data", "stage", "hardware", "training")


@dataclass(frozen=True)
class FileSettings:
    """(key, value) of every setting in a file, groups dissolved, in the order of the file.

    `of_a_run`: a run wrote the file: it holds all settings, under our own names, whatever flags the run was given.
    """

    settings: list[tuple[str, Any]]
    of_a_run: bool


def read_settings(path: str, takes_mapping: Callable[[str], bool]) -> FileSettings:
    """What the file says.

    `takes_mapping` says whether a key is a setting whose value is a mapping; every other mapping is a group,
    whatever its name.

    Raises:
        UserError: the file cannot be read, is not a mapping, or says one thing twice.
    """
    content = _load(path)
    settings = list(_flatten(content, takes_mapping, path))
    seen: dict[str, Any] = {}
    for key, value in settings:
        if key in seen and seen[key] != value:
            raise UserError(f"{path}: {key}: given twice with different values; keep one of them")
        seen[key] = value
    return FileSettings(settings, all(isinstance(content.get(name), dict) for name in _OF_A_RUN))


def words(key: str, value: Any) -> list[str]:
    """The command-line words for one setting that is not null."""
    if isinstance(value, list):
        return [f"--{key}", *(_word(item) for item in value)]
    return [f"--{key}={_word(value)}"]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return str(value)


def _load(path: str) -> dict[Any, Any]:
    if not path.endswith(SUFFIXES):
        raise UserError(f"--config: {path} is not a {', '.join(SUFFIXES)} file; name one")
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        settings = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {path} is not UTF-8 text; save it as such") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: not JSON: {error.msg}; mend that line") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{path}: {where}not YAML: {what}; mend that line") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(
            f"{path}: the file holds {type(settings).__name__}, expected a mapping of `flag: value`"
        )
    return settings


def _flatten(
    mapping: dict[Any, Any], takes_mapping: Callable[[str], bool], path: str
) -> Iterator[tuple[str, Any]]:
    for raw_key, value in mapping.items():
        key = str(raw_key)
        if isinstance(value, dict) and not takes_mapping(key):
            yield from _flatten(value, takes_mapping, path)
        else:
            yield key.removeprefix("--"), value
