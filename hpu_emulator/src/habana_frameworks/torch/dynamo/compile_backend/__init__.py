"""`hpu_backend`, which torch.compile also finds by its name."""

from habana_torch_plugin_emulator.compile_backend import hpu_backend

__all__ = ["hpu_backend"]
