"""Fused optimizers."""

from habana_torch_plugin_emulator.optimizers import FusedAdamW

__all__ = ["FusedAdamW"]
