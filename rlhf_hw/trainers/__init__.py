"""The three stages, each a mixin over the trainer class that the backend picks."""

from __future__ import annotations

from typing import Any


def trainer_for(stage: type, backend: Any) -> type:
    """`stage` (a mixin such as `SFTMixin`) on top of the backend's trainer class."""
    name = stage.__name__.replace("Mixin", "Trainer")
    return type(name, (stage, backend.trainer_class), {"backend": backend})
