"""Seeds and states of the devices' generators."""

from typing import Any

from habana_torch_plugin_emulator import device as _device
from habana_torch_plugin_emulator.random import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name == "default_generators":
        return _device.default_generators
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
