"""Where data come from: a hub name, a directory or files, and how they are split into train and validation."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset

from rlhf_hw.data.convert import convert_rows
from rlhf_hw.data.example import Purpose
from rlhf_hw.data.fingerprint import fingerprint_of_files, fingerprint_of_values
from rlhf_hw.data.report import DataReport, FileReport
from rlhf_hw.data.rows import READERS, RowSource, data_suffix, from_dataset, from_files, from_list
from rlhf_hw.errors import UserError

# What a set's own held-out split may be called, the most fitting first.
VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass
class DataSource:
    """What the data flags say. Exactly one of `dataset_name` and `train_file` is given.

    `dataset_name`: a hub name, or a local directory or file (a local path wins).
    `data_format`: None detects it by the columns.
    Validation rows come from, in this order: `validation_file`; the set's own held-out split;
    `eval_dataset_size` rows of train drawn with `dataset_seed`; the first `validation_split_percentage` of train.
    `streaming`: read a hub set as a stream and stop after `max_train_samples`, without fetching all of it.
    `max_malformed_fraction`: above this share of malformed rows a file is refused.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    data_format: str | None = None
    validation_split_percentage: int = 0
    eval_dataset_size: int | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    dataset_seed: int = 42
    cache_dir: str | None = None
    streaming: bool = False
    keep_in_memory: bool = False
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    num_proc: int | None = None
    task: str = "completion"
    max_malformed_fraction: float = 0.01


@dataclass
class Splits:
    """Canonical data sets (`rlhf_hw.data.example.CANONICAL_FEATURES`) and the report on how they came about."""

    train: Dataset
    validation: Dataset | None
    report: DataReport


def load_splits(source: DataSource, purpose: Purpose) -> Splits:
    """Find, convert, check and split the data. Raises `UserError` for everything a user can mend."""
    _check(source)
    train_rows, validation_rows, origin = _open(source)
    files: list[FileReport] = []

    def convert(rows: RowSource) -> Dataset:
        dataset, report = convert_rows(
            rows,
            purpose=purpose,
            data_format=source.data_format,
            task=source.task,
            max_malformed_fraction=source.max_malformed_fraction,
            cache_dir=source.cache_dir,
            keep_in_memory=source.keep_in_memory,
        )
        files.append(report)
        return dataset

    train = convert(train_rows)
    if validation_rows is not None:
        validation: Dataset | None = convert(validation_rows)
    else:
        train, validation, origin = _split(train, source)
    train = _take(train, range(min(len(train), source.max_train_samples or len(train))))
    if validation is not None:
        validation = _take(
            validation, range(min(len(validation), source.max_eval_samples or len(validation)))
        )
    validation_count = 0 if validation is None else len(validation)
    return Splits(train, validation, DataReport(files, origin, len(train), validation_count))


def open_train_rows(source: DataSource) -> RowSource:
    """The raw rows of the train split, as they come, in no format."""
    _check(source)
    return _open(source)[0]


def _check(source: DataSource) -> None:
    if (source.dataset_name is None) == (source.train_file is None):
        found = "neither" if source.dataset_name is None else "both"
        raise UserError(f"--dataset_name, --train_file: {found} given; give one of them")
    if not 0 <= source.validation_split_percentage < 100:
        raise UserError(f"--validation_split_percentage: {source.validation_split_percentage}; give 0 to 99")
    counts = {
        "max_train_samples": source.max_train_samples,
        "max_eval_samples": source.max_eval_samples,
        "eval_dataset_size": source.eval_dataset_size,
    }
    for flag, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag}: {value}; give a number of rows, at least 1, or leave the flag out")
    if not 0 <= source.max_malformed_fraction <= 1:
        raise UserError(f"--max_malformed_fraction: {source.max_malformed_fraction}; give 0 to 1")


# --- splitting -------------------------------------------------------------------------------------------------


def _split(train: Dataset, source: DataSource) -> tuple[Dataset, Dataset | None, str]:
    """(train, validation, where validation came from) out of one set of rows."""
    count = len(train)
    if source.eval_dataset_size is not None:
        size, flag = source.eval_dataset_size, "--eval_dataset_size"
        held_out = np.random.default_rng(source.dataset_seed).permutation(count)[:size]
        origin = f"{size} rows of train, drawn with seed {source.dataset_seed}"
    elif source.validation_split_percentage:
        size, flag = (
            math.ceil(count * source.validation_split_percentage / 100),
            "--validation_split_percentage",
        )
        held_out = np.arange(size)
        origin = f"the first {source.validation_split_percentage}% of train"
    else:
        return train, None, "none asked for"
    if size >= count:
        raise UserError(f"{flag}: {size} rows for validation leave none of {count} to train on; give fewer")
    is_held_out = np.zeros(count, dtype=bool)
    is_held_out[held_out] = True
    return _take(train, np.flatnonzero(~is_held_out)), _take(train, np.flatnonzero(is_held_out)), origin


def _take(dataset: Dataset, indices: Sequence[int] | np.ndarray) -> Dataset:
    """Some rows, in this order, under a fingerprint that says which."""
    if isinstance(indices, range) and indices == range(len(dataset)):
        return dataset
    which = indices if isinstance(indices, range) else fingerprint_of_values(np.asarray(indices).tobytes())
    return dataset.select(indices, new_fingerprint=fingerprint_of_values(dataset._fingerprint, which))


# --- finding ---------------------------------------------------------------------------------------------------


def _open(source: DataSource) -> tuple[RowSource, RowSource | None, str]:
    """(train rows, validation rows if the source has its own, where those came from)."""
    if source.train_file is not None:
        splits = {"train": from_files([_existing(source.train_file, "--train_file")])}
    else:
        splits = _open_named(source)
    train = _train_split(splits, str(source.dataset_name))
    if source.validation_file is not None:
        path = _existing(source.validation_file, "--validation_file")
        return train, from_files([path]), f"--validation_file {path}"
    own = next((name for name in VALIDATION_SPLITS if name in splits and splits[name] is not train), None)
    return (train, None, "") if own is None else (train, splits[own], f"the set's own split {own!r}")


def _existing(name: str, flag: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{flag}: {name} is not a file; check the path")
    return path


def _train_split(splits: dict[str, RowSource], name: str) -> RowSource:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    found = ", ".join(splits)
    raise UserError(
        f"--dataset_name: {name} has the splits {found} and none named train; save the one you want as train"
    )


def _open_named(source: DataSource) -> dict[str, RowSource]:
    name = str(source.dataset_name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_directory(path)
    if path.is_file():
        return {"train": from_files([path])}
    if not _HUB_NAME.fullmatch(name) or data_suffix(path) is not None:
        raise UserError(
            f"--dataset_name: {name} is neither a file or directory here nor a hub name (owner/name); check the path"
        )
    return _open_hub(name, source)


def _open_directory(directory: Path) -> dict[str, RowSource]:
    """A `save_to_disk` directory, or data files named for their split (train.jsonl, test-00000-of-00002.parquet)."""
    if (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file():
        saved = datasets.load_from_disk(str(directory))
        parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        content = fingerprint_of_files(sorted(file for file in directory.rglob("*") if file.is_file()))
        return {
            str(split): from_dataset(
                part, f"{directory} ({split})", fingerprint_of_values(content, str(split))
            )
            for split, part in parts.items()
        }
    files = sorted(
        file
        for file in itertools.chain(directory.iterdir(), directory.glob("data/*"))
        if file.is_file() and data_suffix(file) is not None
    )
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = re.split(r"[-_.]", file.name)[0]
        if split == "train" or split in VALIDATION_SPLITS:
            by_split.setdefault(split, []).append(file)
    if not by_split and len(files) == 1:
        by_split = {"train": files}
    if "train" not in by_split:
        found = ", ".join(file.name for file in files) or "no data files"
        raise UserError(
            f"--dataset_name: the directory {directory} holds {found}; it needs train.* "
            f"({', '.join(READERS)}) or what save_to_disk writes, or name one of its files"
        )
    return {split: from_files(paths) for split, paths in by_split.items()}


def _open_hub(name: str, source: DataSource) -> dict[str, RowSource]:
    if source.streaming and source.max_train_samples is None:
        raise UserError("--streaming: needs --max_train_samples, the number of rows at which to stop reading")
    with _hub_failures_explained(name, source):
        loaded = datasets.load_dataset(
            name,
            source.dataset_config_name,
            token=source.token,
            revision=source.revision,
            cache_dir=source.cache_dir,
            streaming=source.streaming,
        )
    if source.streaming:
        return {str(split): _first_rows(str(split), rows, name, source) for split, rows in loaded.items()}
    return {
        str(split): from_dataset(part, f"{name} ({split})", fingerprint_of_values(name, part._fingerprint))
        for split, part in loaded.items()
    }


def _first_rows(split: str, rows: "datasets.IterableDataset", name: str, source: DataSource) -> RowSource:
    """The rows of a stream up to the limits, held in memory (their content is their fingerprint)."""
    limit = (source.max_train_samples or 0) + (source.eval_dataset_size or 0)
    if split in VALIDATION_SPLITS and source.max_eval_samples is not None:
        limit = source.max_eval_samples
    with _hub_failures_explained(name, source):
        first_rows = list(itertools.islice(rows, limit))
    return from_list(first_rows, f"{name} ({split})")


@contextmanager
def _hub_failures_explained(name: str, source: DataSource) -> Iterator[None]:
    """Around calls of the hub's libraries only: they raise a dozen unrelated kinds, different in each version."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split()) or "no message"
        if source.token:
            cause = cause.replace(source.token, "[token]")
        tried = [
            f"the hub could not give the data set {name}",
            *([f"config {source.dataset_config_name}"] if source.dataset_config_name else []),
            *([f"revision {source.revision}"] if source.revision else []),
            f"{'with' if source.token else 'without'} an access token",
        ]
        raise UserError(
            f"--dataset_name: no file or directory {name} here, and {', '.join(tried)}: {type(error).__name__}: {cause}"
        ) from error
