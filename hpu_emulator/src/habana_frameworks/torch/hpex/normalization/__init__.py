"""Fused normalization."""

from habana_torch_plugin_emulator.normalization import FusedClipNorm, FusedRMSNorm

__all__ = ["FusedClipNorm", "FusedRMSNorm"]
