"""Data sets from the hub, whole or as a stream, and what to tell a user when the hub will not give one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets

from rlhf_hw.data.fingerprint import fingerprint_of_values
from rlhf_hw.data.rows import RowSource, from_dataset, from_list
from rlhf_hw.errors import UserError

# Names by which a set is known that are no names on the hub: one set there, a format for each of its languages.
HUB_NAMES = {"mkqa-Chinese": "apple/mkqa", "mkqa-Japanese": "apple/mkqa"}
#: Where the hub keeps each set as parquet files, CONFIG/SPLIT/NUMBER.parquet, also those that a script once wrote.
PARQUET_REVISION = "refs/convert/parquet"


def open_hub(
    name: str,
    config: str | None,
    *,
    token: str | None,
    revision: str | None,
    cache_dir: str | None,
    row_limits: dict[str, int] | None,
) -> dict[str, RowSource]:
    """Split → rows. With `row_limits` the set is streamed, and so many rows of each split (the key "": of every
    other split) are held in memory: their content is their fingerprint.

    Raises:
        UserError: the hub does not give the set; says what was tried, without the token.
    """
    hub_name = HUB_NAMES.get(name, name)
    options = {"token": token, "cache_dir": cache_dir, "streaming": row_limits is not None}
    with _failures_explained(hub_name, config, revision, token):
        loaded = _load(hub_name, config, revision, options)
        if row_limits is None:
            return {
                str(split): from_dataset(
                    part, f"{name} ({split})", fingerprint_of_values(hub_name, part._fingerprint)
                )
                for split, part in loaded.items()
            }
        return {
            str(split): from_list(
                list(itertools.islice(rows, row_limits.get(str(split), row_limits[""]))), f"{name} ({split})"
            )
            for split, rows in loaded.items()
        }


def _load(name: str, config: str | None, revision: str | None, options: dict[str, Any]) -> Any:
    try:
        return datasets.load_dataset(name, config, revision=revision, **options)
    except RuntimeError as error:
        if revision is not None or "scripts are no longer supported" not in str(error):
            raise
        files = parquet_files(_hub_files(name, options["token"]), config)
    urls = {
        split: [f"hf://datasets/{name}@{PARQUET_REVISION}/{path}" for path in paths]
        for split, paths in files.items()
    }
    return datasets.load_dataset("parquet", data_files=urls, **options)


def _hub_files(name: str, token: str | None) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi(token=token).list_repo_files(name, repo_type="dataset", revision=PARQUET_REVISION)


def parquet_files(paths: list[str], config: str | None) -> dict[str, list[str]]:
    """Split → files, of the paths CONFIG/SPLIT/NUMBER.parquet; None: the only configuration, "default" or "all"."""
    parts = [path.split("/") for path in sorted(paths) if path.endswith(".parquet") and path.count("/") == 2]
    configs = sorted({part[0] for part in parts})
    if config is None:
        wholes = configs if len(configs) == 1 else [name for name in ("default", "all") if name in configs]
        config = wholes[0] if wholes else None
    if config not in configs:
        raise ValueError(f"its configurations are {', '.join(configs) or 'none'}; name one")
    files: dict[str, list[str]] = {}
    for part in parts:
        if part[0] == config:
            files.setdefault(part[1].removeprefix("partial-"), []).append("/".join(part))
    return files


@contextmanager
def _failures_explained(
    name: str, config: str | None, revision: str | None, token: str | None
) -> Iterator[None]:
    """Around calls of the hub's libraries only: they raise a dozen unrelated kinds, different in each version."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split()) or "no message"
        if token:
            cause = cause.replace(token, "[token]")
        tried = [
            f"the hub could not give the data set {name}",
            *([f"config {config}"] if config else []),
            *([f"revision {revision}"] if revision else []),
            f"{'with' if token else 'without'} an access token",
        ]
        raise UserError(
            f"--dataset_name: no file or directory {name} here, and {', '.join(tried)}: {type(error).__name__}: {cause}"
        ) from error
