"""Which mode runs."""

from habana_torch_plugin_emulator import settings


def is_lazy() -> bool:
    return settings.lazy_mode()


__all__ = ["is_lazy"]
