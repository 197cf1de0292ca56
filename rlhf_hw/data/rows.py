"""Raw rows out of files: json, jsonl, csv, txt (each also .gz), parquet and `save_to_disk` directories.

Text files are read here and not by `datasets.load_dataset`, because its readers infer one type per column: one
number among a million strings fails the whole file with no line named, and pandas turns an answer "NA" or
"None" in a csv into null. Here a row is judged on its own, and a broken file is named with its line.
"""

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import datasets
import pyarrow
import pyarrow.parquet

from rlhf_hw.data.fingerprint import fingerprint_of_files, fingerprint_of_values
from rlhf_hw.errors import UserError

ARROW_BATCH = 1000


@dataclass(frozen=True)
class RowSource:
    """Rows that can be read again and again: `read()` starts from the first one.

    `label`: what an error calls it. `fingerprint`: changes whenever the content does.
    """

    label: str
    fingerprint: str
    read: Callable[[], Iterator[Any]]


def from_files(paths: list[Path]) -> RowSource:
    """The rows of several files, one after the other."""
    for path in paths:
        if data_suffix(path) is None:
            raise UserError(
                f"{path}: unknown kind of file; known are {', '.join(READERS)} (text ones also .gz)"
            )

    def read() -> Iterator[Any]:
        for path in paths:
            yield from READERS[str(data_suffix(path))](path)

    return RowSource(", ".join(map(str, paths)), fingerprint_of_files(paths), read)


def from_dataset(dataset: "datasets.Dataset", label: str, fingerprint: str) -> RowSource:
    return RowSource(label, fingerprint, lambda: iter(dataset))


def from_list(rows: list[Any], label: str) -> RowSource:
    """Rows already in memory, known by their content."""
    return RowSource(label, fingerprint_of_values(*map(repr, rows)), lambda: iter(rows))


def join_rows(sources: list[RowSource]) -> RowSource:
    """The rows of several sources, one after the other."""
    if len(sources) == 1:
        return sources[0]
    return RowSource(
        ", ".join(source.label for source in sources),
        fingerprint_of_values(*(source.fingerprint for source in sources)),
        lambda: itertools.chain.from_iterable(source.read() for source in sources),
    )


def data_suffix(path: Path) -> str | None:
    """The key of `READERS` for this file name, None where there is none."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    packed_parquet = suffix == ".parquet" and path.name.lower().endswith(".gz")
    return suffix if suffix in READERS and not packed_parquet else None


# --- one reader a kind of file ---------------------------------------------------------------------------------


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """A text file, unpacked if need be; damage to it or a foreign encoding is the user's to mend."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        # utf-8-sig: files from spreadsheets begin with a byte order mark. newline="": csv must see quoted "\r\n".
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); convert the file to UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch or pack it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_json_lines(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        yield from _parse_lines(path, file)


def _parse_lines(path: Path, lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno}); "
                    "mend or delete that line"
                ) from error


def _read_json(path: Path) -> Iterator[Any]:
    """One JSON list of objects, or (as many .json files are) an object a line."""
    with _open_text(path) as file:
        content = file.read()
    if not content.lstrip().startswith("["):
        yield from _parse_lines(path, content.split("\n"))
        return
    try:
        yield from json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg} at column {error.colno}); mend the file"
        ) from error


def _read_csv(path: Path) -> Iterator[Any]:
    """Every value as text, just as written. A row with too many fields keeps them under the key None."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    with _open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            yield from reader
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: not valid csv ({error}); check the quotes of the row ending there"
            ) from error


def _read_text_lines(path: Path) -> Iterator[Any]:
    """A row a line; blank lines separate and are no rows."""
    with _open_text(path) as file:
        for line in file:
            if line.strip():
                yield {"text": line.rstrip("\r\n")}


def _read_parquet(path: Path) -> Iterator[Any]:
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(ARROW_BATCH):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text_lines,
}
