"""Queries about the device and the mode."""

from . import experimental, internal, library_loader

__all__ = ["experimental", "internal", "library_loader"]
