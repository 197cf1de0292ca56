"""Results that survive being killed: a line a result while the work goes on, one whole JSON file at its end.

Beside the output a journal (`OUTPUT.partial.jsonl`) grows by one flushed line a result. Its first line says with which
settings it was begun, so that a restart either continues the same work or refuses. The output itself appears at once and
whole, when everything is there; then the journal goes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rlhf_hw.errors import UserError
from rlhf_hw.run_files import as_json, read_json_lines, write_atomically

SUFFIX = ".partial.jsonl"


class Journal:
    """The results so far, by the number of their row. A context manager: inside, no other process may write here.

    Args:
        output: the file that holds everything in the end.
        settings: what the results depend on; strings, numbers, lists and mappings.
        overwrite: start afresh, whatever is there.
        flag: the flag that named `output`, for error messages.

    Raises:
        UserError: the output is there already, or was begun with other settings, or cannot be written.
    """

    def __init__(self, output: str, settings: Mapping[str, Any], *, overwrite: bool, flag: str) -> None:
        self.output = Path(output)
        self.path = self.output.with_name(self.output.name + SUFFIX)
        self.settings = json.loads(json.dumps(settings))
        self.flag = flag
        self.results: dict[int, dict[str, Any]] = {}
        self._overwrite = overwrite
        self._file: TextIO | None = None
        check_output(output, overwrite=overwrite, flag=flag)

    def __enter__(self) -> Journal:
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self.flag}: cannot write {self.path}: {error.strerror}; name another file"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"{self.flag}: another process is writing {self.path}; wait for it") from error
        if not self._overwrite:
            self.results = self._read()
        if self.results:
            # a killed process may have left half a line, and the next one must not join it
            self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
        else:
            self._file.truncate(0)
            self._write({"settings": self.settings})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, row: int, result: Mapping[str, Any]) -> None:
        """Keep the result of a row; it is on disk when this returns."""
        self.results[row] = dict(result)
        self._write({"row": row, **result})

    def finish(self, content: Any) -> None:
        """Write the output, whole, and remove the journal."""
        write_atomically(self.output, as_json(content))
        self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def _read(self) -> dict[int, dict[str, Any]]:
        rows = read_json_lines(self.path).rows
        if not rows:
            return {}
        begun = rows[0].get("settings", {})
        for name, value in self.settings.items():
            if begun.get(name) != value:
                raise UserError(
                    f"{self.flag}: {self.path} was begun with {name} {_short(begun.get(name))}, now it is {_short(value)}; "
                    "give --overwrite to start afresh, or another output"
                )
        return {row.pop("row"): row for row in rows[1:] if isinstance(row.get("row"), int)}


def fingerprint(rows: Sequence[Any]) -> str:
    """How many rows, and a digest of what is in them."""
    content = json.dumps(list(rows), ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")
    return f"{len(rows)} rows, sha256 {hashlib.sha256(content).hexdigest()[:16]}"


def check_output(output: str, *, overwrite: bool, flag: str) -> None:
    """Raise UserError where `output` is there already and may not be replaced."""
    if Path(output).is_dir():
        raise UserError(f"{flag}: {output} is a directory; name a file")
    if Path(output).exists() and not overwrite:
        raise UserError(
            f"{flag}: {output} is there already, whole; give --overwrite to replace it, or name another file"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
