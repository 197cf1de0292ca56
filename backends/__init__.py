"""What the hardware is: one module a backend, and `resolve`, which picks one."""

from backends.base import (
    Availability,
    Backend,
    BackendError,
    Choice,
    MemoryStatistics,
    Precision,
)
from backends.hpu import HPUSettings
from backends.resolve import BACKENDS, resolve
from backends.shapes import DynamicShapes, ShapePolicy

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "BackendError",
    "Choice",
    "DynamicShapes",
    "HPUSettings",
    "MemoryStatistics",
    "Precision",
    "ShapePolicy",
    "resolve",
]
