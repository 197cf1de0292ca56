"""The `hpu` device of PyTorch on CPU memory. Importing torch loads it, through the `torch.backends` entry point.

TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps an installed emulator out of a process.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

__version__ = "1.24.0"

_loaded = False
_announced = False


def autoload() -> None:
    """Registers the device; torch calls this near the end of `import torch`. Calling it again does nothing.

    It must run before anything asks `torch.accelerator`: torch keeps the first answer for good.
    Raises ImportError where Intel's own plugin is installed, as both would claim the same device.
    """
    global _loaded
    if _loaded:
        return
    _refuse_beside_the_vendor()
    from habana_torch_plugin_emulator import device, settings
    from habana_torch_plugin_emulator.environment import adopt_mpi_environment

    adopt_mpi_environment()
    device.install()
    _loaded = True
    if settings.graphs() is not None:
        from habana_torch_plugin_emulator import accounting

        accounting.count_for_the_process(settings.graphs() or "")


def is_loaded() -> bool:
    """Whether the `hpu` device of this process is the emulated one."""
    return _loaded


def announce() -> None:
    """Says on stderr, once per process, that this is an emulation."""
    global _announced
    from habana_torch_plugin_emulator import settings

    if _announced:
        return
    _announced = True
    if settings.quiet() or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    print(
        f"habana-torch-plugin-emulator {__version__}: the hpu device is emulated on CPU memory; "
        "nothing here says how fast a Gaudi is (HPU_EMULATOR_QUIET=1 silences this line).",
        file=sys.stderr,
    )


def _refuse_beside_the_vendor() -> None:
    try:
        version = importlib.metadata.version("habana-torch-plugin")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"habana-torch-plugin {version} is installed: this machine has the real HPU software, and the emulator would "
        "claim the same device. Uninstall one of them (pip uninstall habana-torch-plugin-emulator)."
    )
