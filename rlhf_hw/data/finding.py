"""One data set found by its name: a file, a directory, a set on the hub; and which of its splits is which."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets

from rlhf_hw.data.fingerprint import fingerprint_of_files, fingerprint_of_values
from rlhf_hw.data.hub import open_hub
from rlhf_hw.data.rows import READERS, RowSource, data_suffix, from_dataset, from_files, join_rows
from rlhf_hw.errors import UserError

if TYPE_CHECKING:
    from rlhf_hw.data.sources import DataSource

# What a set's own held-out split may be called, the most fitting first.
VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")
#: DeepSpeed-Chat's name for these two files of the directory one works in.
LOCAL_JSON_NAME, LOCAL_JSON_FILES = "local/jsonfile", {"train": "data/train.json", "eval": "data/eval.json"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_set(name: str, source: DataSource) -> tuple[RowSource, RowSource | None, str]:
    """(train rows, validation rows if the set has its own, where those came from).

    `name` is one of `source.names()`, or of its sets for fine-tuning only.
    """
    if source.train_file is not None and name == source.train_file:
        splits = {"train": from_files([existing_file(name, "--train_file")])}
    else:
        splits = _open_named(name, source)
    if source.train_splits:
        train = _named_splits(splits, source.train_splits, name, "--train_splits")
    else:
        train = _train_split(splits, name)
    if source.eval_splits:
        held_out = _named_splits(splits, source.eval_splits, name, "--eval_splits")
        return train, held_out, f"the set's splits {', '.join(source.eval_splits)}"
    others = [
        split for split in splits if splits[split] is not train and split not in (source.train_splits or ())
    ]
    own = next((split for split in VALIDATION_SPLITS if split in others), None)
    return (train, None, "") if own is None else (train, splits[own], f"the set's own split {own!r}")


def existing_file(name: str, flag: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{flag}: {name} is not a file; check the path")
    return path


def _named_splits(splits: dict[str, RowSource], wanted: Sequence[str], name: str, flag: str) -> RowSource:
    missing = [split for split in wanted if split not in splits]
    if missing:
        raise UserError(f"{flag}: {name} has no split {missing[0]!r}; it has {', '.join(splits)}")
    return join_rows([splits[split] for split in wanted])


def _train_split(splits: dict[str, RowSource], name: str) -> RowSource:
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise UserError(
        f"--dataset_name: {name} has the splits {', '.join(splits)} and none named train; name those you want with "
        "--train_splits"
    )


def _open_named(name: str, source: DataSource) -> dict[str, RowSource]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_directory(path, source)
    if path.is_file():
        return {"train": from_files([path])}
    if name == LOCAL_JSON_NAME:
        return _open_local_json()
    if not _HUB_NAME.fullmatch(name) or data_suffix(path) is not None:
        raise UserError(
            f"--dataset_name: {name} is neither a file or directory here nor a hub name (owner/name); check the path"
        )
    return open_hub(
        name,
        source.dataset_config_name,
        token=source.token,
        revision=source.revision,
        cache_dir=source.cache_dir,
        row_limits=_row_limits(source),
    )


def _row_limits(source: DataSource) -> dict[str, int] | None:
    """Split → how many rows of a stream are wanted; the key "" stands for every other split. None: no stream."""
    if not source.streaming:
        return None
    if source.max_train_samples is None:
        raise UserError("--streaming: needs --max_train_samples, the number of rows at which to stop reading")
    limits = {"": source.max_train_samples + (source.eval_dataset_size or 0)}
    if source.max_eval_samples is not None:
        limits |= dict.fromkeys(source.eval_splits or VALIDATION_SPLITS, source.max_eval_samples)
    return limits


def _open_local_json() -> dict[str, RowSource]:
    missing = [file for file in LOCAL_JSON_FILES.values() if not Path(file).is_file()]
    if missing:
        raise UserError(
            f"--dataset_name: {LOCAL_JSON_NAME} means data/train.json and data/eval.json under {Path.cwd()}; "
            f"{' and '.join(missing)} not found there"
        )
    return {split: from_files([Path(file)]) for split, file in LOCAL_JSON_FILES.items()}


def _open_directory(directory: Path, source: DataSource) -> dict[str, RowSource]:
    """A `save_to_disk` directory, or data files named for their split (train.jsonl, test-00000-of-00002.parquet)."""
    config = source.dataset_config_name
    if config not in (None, "default"):
        if not (directory / str(config)).is_dir():
            return {"train": from_files([_file_of_config(directory, str(config))])}
        directory = directory / str(config)
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
    asked = [*(source.train_splits or ()), *(source.eval_splits or ())]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        names = (
            split
            for split in (*asked, "train", *VALIDATION_SPLITS)
            if re.match(rf"{re.escape(split)}[-_.]", file.name)
        )
        split = next(names, None)
        if split is not None:
            by_split.setdefault(split, []).append(file)
    if not by_split and len(files) == 1:
        by_split = {"train": files}
    if "train" not in by_split and not source.train_splits:
        found = ", ".join(file.name for file in files) or "no data files"
        raise UserError(
            f"--dataset_name: the directory {directory} holds {found}; it needs train.* "
            f"({', '.join(READERS)}) or what save_to_disk writes, or name one of its files, or its splits with "
            "--train_splits"
        )
    return {split: from_files(paths) for split, paths in by_split.items()}


def _file_of_config(directory: Path, config: str) -> Path:
    """The data file of a directory that is named as a configuration."""
    files = [
        file
        for file in sorted(directory.iterdir())
        if data_suffix(file) and file.name.startswith(f"{config}.")
    ]
    if not files:
        found = ", ".join(sorted(entry.name for entry in directory.iterdir())) or "nothing"
        raise UserError(
            f"--dataset_config_name: the directory {directory} holds no directory and no data file named {config} "
            f"(it holds {found}); give one of these, or leave the flag out"
        )
    return files[0]
