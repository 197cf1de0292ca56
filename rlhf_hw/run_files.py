"""The files of a run directory: their names, reading them, replacing them atomically, and knowing which are ours."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_hw.errors import UserError

CONFIG = "config.yaml"
COMMAND = "command.txt"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
STATUS = "status.json"
OWN_FILES = "rlhf_hw_files.json"
REPORTS = ("report.md", "report.html")
RUN_FILES = (CONFIG, COMMAND, ENVIRONMENT, METRICS, SAMPLES, EVENTS, STATUS, OWN_FILES, *REPORTS)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
_RNG_STATES = (
    "rng_state*.pth"  # each rank writes its own into a checkpoint, perhaps after rank 0 has listed it
)


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass
class JsonLines:
    """The rows of a .jsonl file, and one sentence for each line that could not be read."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_json_lines(path: Path) -> JsonLines:
    """Read a log that may have been killed in the middle of a line. A missing file has no rows."""
    result = JsonLines()
    if not path.exists():
        return result
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # a bad character as well as bad JSON
            row = None
        if isinstance(row, dict):
            result.rows.append(row)
        elif number == len(lines):
            result.warnings.append(
                f"{path.name}: the last line ({number}) is torn, as a killed run leaves it, and was left out."
            )
        else:
            result.warnings.append(f"{path.name}: line {number} is not a JSON object and was left out.")
    return result


def read_metrics(directory: str | os.PathLike[str]) -> JsonLines:
    """The metrics of a run directory, in the order they were logged."""
    return read_json_lines(Path(directory) / METRICS)


def last_checkpoint(directory: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint with the highest step; one killed while being written has no trainer_state.json."""
    found = {}
    for path in Path(directory).glob("checkpoint-*"):
        match = _CHECKPOINT.match(path.name)
        if match and (path / "trainer_state.json").is_file():
            found[int(match[1])] = path
    return found[max(found)] if found else None


# ---- writing --------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """Replace a file at once: a reader, or a process killed here, sees the old text or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# ---- which files are ours -------------------------------------------------------------------------------------------


def record_own_files(directory: Path, names: Iterable[str]) -> None:
    """Add names, relative to the run directory, to the list of files that `--overwrite_output_dir` may remove."""
    before = set(_own_files(directory))
    after = before | set(names)
    if after != before:
        listing = {"written_by": "rlhf_hw", "files": sorted(after)}
        write_atomically(directory / OWN_FILES, as_json(listing))


def remove_own_files(directory: Path) -> None:
    """Remove the files that runs of ours have listed, and the folders this empties. All else stays."""
    own = [directory / name for name in _own_files(directory)]
    for folder in {file.parent for file in own if _CHECKPOINT.match(file.parent.name)}:
        own += folder.glob(_RNG_STATES)
    root = directory.resolve()
    for file in own:
        if root in (file.parent.resolve(), *file.parent.resolve().parents):  # not through a link to elsewhere
            file.unlink(missing_ok=True)
    parents = {parent for file in own for parent in file.parents if directory in parent.parents}
    for folder in sorted(parents, key=lambda parent: len(parent.parts), reverse=True):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()


def refuse_foreign_files(directory: Path) -> None:
    """Raise UserError where a file that a run would write is there already and is not listed as ours."""
    own = set(_own_files(directory))
    for name in RUN_FILES:
        if name not in own and (directory / name).exists():
            raise UserError(
                f"--output_dir: {str(directory / name)!r} was not written by rlhf_hw and a run would replace it; "
                "move it away or name another directory"
            )


def _own_files(directory: Path) -> list[str]:
    """The list in rlhf_hw_files.json, without names that lead out of the directory: it may have been edited."""
    path = directory / OWN_FILES
    if not path.exists():
        return []
    try:
        names = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["files"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--output_dir: {str(path)!r}, the list of files that runs here have written, cannot be read ({error}); "
            "name another directory, or delete it and then nothing here counts as ours"
        ) from error
    return [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
