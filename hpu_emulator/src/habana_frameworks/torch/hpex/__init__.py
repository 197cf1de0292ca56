"""Fused kernels, normalization and optimizers."""

from . import kernels, normalization, optimizers

__all__ = ["kernels", "normalization", "optimizers"]
