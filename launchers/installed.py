"""Which packages an interpreter has, asked without importing any of them."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys

#: An emulated Gaudi: `habana_frameworks` on CPU memory. The package, and the distribution that brings it.
EMULATOR_PACKAGE = "habana_torch_plugin_emulator"
EMULATOR_DISTRIBUTION = "habana-torch-plugin-emulator"

_PROGRAM = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec(sys.argv[1]) else 3)"


def has_package(python: str, package: str) -> bool:
    """Whether `python` could import the top-level package. Another interpreter than ours is asked once."""
    if python == sys.executable:
        return importlib.util.find_spec(package) is not None
    return _ask(python, package)


@functools.cache
def _ask(python: str, package: str) -> bool:
    try:
        done = subprocess.run([python, "-c", _PROGRAM, package], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no such interpreter: the launch itself will say so
        return False
    return done.returncode == 0


def has_emulator(python: str) -> bool:
    """Whether `python` has the emulated Gaudi."""
    return has_package(python, EMULATOR_PACKAGE)
