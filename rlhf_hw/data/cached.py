"""A generator's rows as a data set in the cache of `datasets`, made once for each fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Features
from datasets.exceptions import DatasetGenerationError

from rlhf_hw.errors import UserError


def cached_rows(
    generate: Callable[..., Iterator[dict[str, Any]]],
    features: Features,
    fingerprint: str,
    *,
    cache_dir: str | None,
    keep_in_memory: bool,
    **arguments: Any,
) -> Dataset:
    """What `generate(**arguments)` yields, or what it yielded when it last ran under this fingerprint.

    Raises:
        UserError: the generator raised it (`datasets` wraps it in an error of its own).
    """
    try:
        return Dataset.from_generator(
            generate,
            features=features,
            cache_dir=cache_dir,
            keep_in_memory=keep_in_memory,
            gen_kwargs=arguments,
            fingerprint=fingerprint,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
