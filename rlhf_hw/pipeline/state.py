"""What has been done: which steps are complete, with which settings, and how long each took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_hw.errors import UserError
from rlhf_hw.pipeline.steps import Step
from rlhf_hw.run_files import STATUS, as_json, last_checkpoint, write_atomically
from rlhf_hw.secrets import redact_argv

RECORD = "pipeline.json"
_WEIGHTS = ("config.json", "adapter_config.json")


@dataclass
class Record:
    """`pipeline.json` in the output directory: words and seconds of each step, over all attempts."""

    path: Path
    steps: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, output_dir: str) -> Record:
        """The record as it is; empty where there is none.

        Raises:
            UserError: the file is no record any more.
        """
        path = Path(output_dir) / RECORD
        if not path.exists():
            return cls(path, {})
        try:
            steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            return cls(path, {str(number): dict(step) for number, step in steps.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"--output-dir: {path} cannot be read ({error}); move it away") from error

    @contextmanager
    def timing(self, step: Step, *, anew: bool) -> Iterator[None]:
        """Around a step: its words, and its seconds added to those of earlier attempts (`anew`: of none)."""
        entry = {} if anew else self.steps.get(str(step.number), {})
        before = float(entry.get("seconds", 0.0))
        start = time.monotonic()
        self.steps[str(step.number)] = {**entry, "words": redact_argv(step.words), "seconds": before}
        try:
            yield
        finally:
            self.steps[str(step.number)]["seconds"] = round(before + time.monotonic() - start, 1)
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, as_json({"steps": self.steps}))
            except OSError as error:
                raise UserError(
                    f"--output-dir: cannot write {self.path}: {error.strerror}; name another"
                ) from error

    def seconds(self, number: int) -> float | None:
        """How long a step took; None where it has not run."""
        entry = self.steps.get(str(number))
        return None if entry is None else float(entry["seconds"])

    def same_words(self, step: Step) -> bool:
        """Whether the step was last run with the same words as now; also where nothing is known."""
        entry = self.steps.get(str(step.number))
        return entry is None or entry.get("words") == redact_argv(step.words)


def is_complete(folder: Path) -> bool:
    """Whether a run in `folder` has finished and left its model."""
    status = folder / STATUS
    if not status.is_file() or not any((folder / name).is_file() for name in _WEIGHTS):
        return False
    try:
        return json.loads(status.read_text(encoding="utf-8")).get("state") == "finished"
    except ValueError:
        return False


def way_on(folder: Path, *, anew: bool) -> list[str]:
    """What a step is told about an earlier attempt in its folder: to resume, to start afresh, or nothing."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return []
    if not anew and last_checkpoint(folder) is not None:
        return ["--resume_from_checkpoint"]
    return ["--overwrite_output_dir"]
