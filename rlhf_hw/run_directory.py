"""What a run leaves behind, written so that it tells its own story and holds no secret.

    config.yaml       the resolved configuration, grouped           (written once, and again on resuming)
    command.txt       the command, ready to be pasted into a shell
    environment.json  Python, packages, platform, backend; no host name, no user name, no environment variables
    metrics.jsonl     one JSON object a log call: step, epoch, wall_seconds, then the metrics
    samples.jsonl     one JSON object a sample: step, then the caller's columns
    events.jsonl      started, resumed, finished, failed, interrupted, each with its UTC time
    status.json       the present state
    rlhf_hw_files.json  which files here are ours: the only ones that `--overwrite_output_dir` removes

Whole files appear atomically (a temporary file, then a rename); the .jsonl files grow by one flushed write a line.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

import rlhf_hw
from rlhf_hw.errors import UserError
from rlhf_hw.run_files import (
    COMMAND,
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    METRICS,
    RUN_FILES,
    SAMPLES,
    STATUS,
    as_json,
    last_checkpoint,
    read_json_lines,
    read_metrics,
    record_own_files,
    refuse_foreign_files,
    remove_own_files,
    write_atomically,
)
from rlhf_hw.secrets import SecretVault, redact_mapping, shell_command

logger = logging.getLogger(__name__)

PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy"),
    *("bitsandbytes", "deepspeed", "optimum", "optimum-habana", "habana-torch-plugin", "wandb"),
)

State = Literal["running", "finished", "failed", "interrupted"]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
_RNG_STATES = (
    "rng_state*.pth"  # each rank writes its own into a checkpoint, perhaps after rank 0 has listed it
)


class RunDirectory:
    """Rank 0's pen. On every other process each method does nothing, so that callers need not ask."""

    def __init__(self, path: Path, vault: SecretVault, *, is_main_process: bool) -> None:
        self.path = path
        self.is_main_process = is_main_process
        self.vault = vault
        self._started = time.monotonic()
        self._seconds_before = 0.0  # wall time of the runs that this one resumes
        self._step = 0
        self._resumed_at: int | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        command: Sequence[str],
        config: Mapping[str, Any],
        secrets: Iterable[str] = (),
        backend: Mapping[str, Any] | None = None,
        is_main_process: bool = True,
        resume: bool = False,
        overwrite: bool = False,
    ) -> RunDirectory:
        """Make or reopen the directory and write down what is about to run.

        A directory with something in it is continued when `resume` is set and it holds a checkpoint, and started
        afresh when `overwrite` is set: then only what earlier runs of ours wrote is removed.
        `secrets` are values to keep out besides those found in `command`, `config` and the environment's tokens;
        a SecretVault given here is used (and taught) as it is. `backend` is what `Backend.describe()` returns.

        Raises UserError where the directory holds something and neither flag allows going on.
        """
        vault = secrets if isinstance(secrets, SecretVault) else SecretVault(secrets)
        config = _plain(config)
        vault.learn_argv(command)
        vault.learn_mapping(config)
        vault.learn_mapping({name: value for name, value in os.environ.items() if len(value) >= 8})
        run = cls(Path(path), vault, is_main_process=is_main_process)
        if not is_main_process:
            return run
        resumed = run._claim(resume=resume, overwrite=overwrite)
        if resumed:
            run._reopen()
        record_own_files(run.path, RUN_FILES)
        write_atomically(run.path / CONFIG, _as_yaml(redact_mapping(config, vault)))
        write_atomically(run.path / COMMAND, vault.scrub(_command_text(command)))
        write_atomically(
            run.path / ENVIRONMENT, as_json(redact_mapping(describe_environment(backend or {}), vault))
        )
        if not resumed:
            write_atomically(run.path / METRICS, "")
            run.event("started")
        run._write_status("running")
        return run

    # ---- while running ----------------------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, Any], *, step: int, epoch: float | None = None) -> None:
        """Append one row to metrics.jsonl. NaN and infinities become null, and `nonfinite` says which they were."""
        if not self.is_main_process:
            return
        row: dict[str, Any] = {"step": int(step)}
        if epoch is not None:
            row["epoch"] = float(epoch)
        row["wall_seconds"] = round(self._wall_seconds(), 3)
        nonfinite = {}
        for name, value in _plain(metrics).items():
            if isinstance(value, float) and not math.isfinite(value):
                nonfinite[name] = str(value)
                value = None
            row[name] = value
        if nonfinite:
            row["nonfinite"] = nonfinite
        self._append(METRICS, row)
        self._step = int(step)
        self._write_status("running")

    def log_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append samples, e.g. {"prompt": …, "response": …, "score": …}; the report shows the first beside the last."""
        if self.is_main_process:
            for row in rows:
                self._append(SAMPLES, {"step": int(step), **row})

    def event(self, name: str, **details: Any) -> None:
        """Append to events.jsonl something worth knowing later, with the time it happened."""
        if self.is_main_process:
            self._append(EVENTS, {"time": _now(), "event": name, **details})

    def truncate_after(self, step: int) -> None:
        """Continue from `step`: drop the metrics and samples a killed run wrote past its last checkpoint.

        Said twice of the same step it does nothing more: both a command and the Trainer's callback may say it.
        """
        if not self.is_main_process or self._resumed_at == step:
            return
        self._resumed_at = step
        dropped = 0
        for name in (METRICS, SAMPLES):
            rows = read_json_lines(self.path / name).rows
            kept = [row for row in rows if row.get("step", 0) <= step]
            dropped += len(rows) - len(kept)
            if (self.path / name).exists():
                write_atomically(self.path / name, "".join(_json_line(row) for row in kept))
        self._step = int(step)
        self.event("resumed", step=int(step), dropped_rows=dropped)

    def own_checkpoint(self, step: int) -> None:
        """Note the files of the checkpoint just saved as ours."""
        checkpoint = self.path / f"checkpoint-{int(step)}"
        if self.is_main_process and checkpoint.is_dir():
            files = [file for file in checkpoint.rglob("*") if file.is_file()]
            record_own_files(self.path, (file.relative_to(self.path).as_posix() for file in files))

    # ---- at the end -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The run ended as it should."""
        self._end("finished")

    def fail(self, reason: str | BaseException) -> None:
        """The run ended early; a KeyboardInterrupt counts as interrupted. The reason is kept, secrets taken out."""
        if isinstance(reason, BaseException):
            state: State = "interrupted" if isinstance(reason, KeyboardInterrupt) else "failed"
            self._end(state, reason=f"{type(reason).__name__}: {reason}".rstrip(": "))
        else:
            self._end("failed", reason=reason)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.fail(error)

    # ---- within -----------------------------------------------------------------------------------------------------

    def _claim(self, *, resume: bool, overwrite: bool) -> bool:
        """Make the directory ours; returns whether an earlier run in it is continued."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir: {str(self.path)!r} is a file; name a directory")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
        except OSError as error:
            raise UserError(
                f"--output_dir: cannot use {str(self.path)!r} ({error.strerror}); name a directory you may write to"
            ) from error
        if not occupied:
            return False
        checkpoint = last_checkpoint(self.path)
        if resume and checkpoint is not None:
            refuse_foreign_files(self.path)
            return True
        if overwrite:
            remove_own_files(self.path)
            refuse_foreign_files(self.path)
            stranger = last_checkpoint(self.path)
            if stranger is not None:
                logger.warning(
                    "%s was not written by a run of ours and stays; --resume_from_checkpoint would find it",
                    stranger,
                )
            return False
        if checkpoint is None:
            found = "has no checkpoint to resume from" if resume else "is not empty"
            way_on = ""
        else:
            found = f"already holds a run, saved up to {checkpoint.name}"
            way_on = "add --resume_from_checkpoint to continue it, "
        raise UserError(
            f"--output_dir: {str(self.path)!r} {found}; {way_on}add --overwrite_output_dir to start afresh in it "
            "(only files of earlier runs are removed), or name another directory"
        )

    def _reopen(self) -> None:
        """Cut off a line that a kill has torn, and go on counting wall time where the last row stopped."""
        for name in (METRICS, SAMPLES, EVENTS):
            if (self.path / name).exists():
                content = (self.path / name).read_bytes()
                if content and not content.endswith(b"\n"):
                    write_atomically(self.path / name, content[: content.rfind(b"\n") + 1].decode())
        rows = read_metrics(self.path).rows
        self._seconds_before = max((row.get("wall_seconds", 0.0) for row in rows), default=0.0)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = _json_line(self.vault.scrub_nested(_plain(row)))
        with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line)

    def _wall_seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _end(self, state: State, **details: str) -> None:
        if self.is_main_process:
            self.event(state, wall_seconds=round(self._wall_seconds(), 3), step=self._step, **details)
            self._write_status(state, **details)

    def _write_status(self, state: State, **details: str) -> None:
        seconds = round(self._wall_seconds(), 3)
        status = {"state": state, "step": self._step, "updated": _now(), "wall_seconds": seconds, **details}
        write_atomically(self.path / STATUS, as_json(self.vault.scrub_nested(status)))


def describe_environment(backend: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depends on besides its configuration. Says nothing about who ran it, or on which host."""
    packages = {"rlhf_hw": rlhf_hw.__version__}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "backend": _plain(backend),
        "packages": packages,
    }


def _command_text(command: Sequence[str]) -> str:
    line = shell_command(command)
    if command and command[0].endswith(".py"):
        line = f"python {line}"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    notes = (
        [f"# ran as {processes} processes: start it with the same launcher again\n"] if processes > 1 else []
    )
    for variable in dict.fromkeys(re.findall(r'"\$(\w+)"', line)):
        notes.append(f"# a secret was left out: set the variable {variable} before you run this\n")
    return "".join(notes) + line + "\n"


def _plain(value: Any) -> Any:
    """`value` in terms of JSON and YAML: what has no such form (a path, a dtype) becomes its text."""
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if hasattr(value, "tolist"):  # a tensor or an array, of any number of elements
        return _plain(value.tolist())
    return str(value)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_without_nonfinite(row), ensure_ascii=False, allow_nan=False) + "\n"


def _without_nonfinite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nonfinite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nonfinite(item) for item in value]
    return value


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
