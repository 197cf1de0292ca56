"""A run that is resumed where it had reached its last step: nothing is left to train, and nothing more is trained.

The base trainers look whether they are done after a step only, and so take one too many.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging


def steps_of(checkpoint: str) -> int:
    """Optimizer steps that were taken when `checkpoint` was written."""
    return int(json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"])


def nothing_left(checkpoint: str, max_steps: int) -> bool:
    """Whether `checkpoint` has all steps that were asked for; False where `max_steps` (-1) leaves them to the epochs."""
    return 0 < max_steps <= steps_of(checkpoint)


@contextmanager
def empty_epoch_is_meant() -> Iterator[None]:
    """Keep the base trainers from warning that there was no batch to train on."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
