"""A run that is resumed where it had reached its last step: nothing is left to train, and nothing more is trained.

The base trainers look whether they are done after a step only, and so take one too many.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def steps_of(checkpoint: str) -> int:
    """Optimizer steps that were taken when `checkpoint` was written."""
    return int(json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"])


def nothing_left(checkpoint: str, max_steps: int) -> bool:
    """Whether `checkpoint` has all steps that were asked for; False where `max_steps` (-1) leaves them to the epochs."""
    return 0 < max_steps <= steps_of(checkpoint)


@contextmanager
def empty_epoch_is_meant(trainer: Any) -> Iterator[None]:
    """Keep the classes that `trainer` is made of from warning that there was no batch to train on."""
    loggers = [logging.getLogger(name) for name in {cls.__module__ for cls in type(trainer).__mro__}]
    for logger in loggers:
        logger.addFilter(_is_other_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_other_news)


def _is_other_news(record: logging.LogRecord) -> bool:
    return "not to be a single sample in your epoch_iterator" not in str(record.msg)
