"""The former way to load the plugin."""

import habana_torch_plugin_emulator


def load_habana_module() -> None:
    """Does nothing more: the plugin loads at `import torch`."""
    habana_torch_plugin_emulator.autoload()


__all__ = ["load_habana_module"]
