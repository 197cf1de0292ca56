"""The Gaudi software that is installed, and what in it cannot work: known from metadata alone, before torch is imported.

Intel's plugin is compiled for the torch of its own image, whose version says so ("2.9.0+hpu_1.23.1-25.git…"). Only what
is certain is called a clash: a torch whose version says nothing about its maker is left alone.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from launchers.installed import EMULATOR_DISTRIBUTION
from rlhf_hw.compat.combinations import Clash, TorchBuild

PLUGIN_DISTRIBUTION = "habana-torch-plugin"
RUNTIME_DISTRIBUTION = "optimum-habana"
#: How builds for other devices end their version: 2.13.0+cu130, +cpu, +rocm7.0, +xpu.
_OTHER_BUILDS = re.compile(r"\+(cu\d|cpu|rocm|xpu)")
_RELEASE_OF_TORCH = re.compile(r"\+hpu[_.](\d+\.\d+\.\d+)")
_RELEASE_OF_PLUGIN = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class GaudiSoftware:
    """Versions of what drives Gaudis, None where it is not installed: Intel's plugin, the emulator, optimum-habana."""

    plugin: str | None = None
    emulator: str | None = None
    optimum_habana: str | None = None

    @classmethod
    def installed(cls) -> GaudiSoftware:
        """What the running interpreter has."""
        return cls(
            _version(PLUGIN_DISTRIBUTION), _version(EMULATOR_DISTRIBUTION), _version(RUNTIME_DISTRIBUTION)
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def gaudi_clashes(software: GaudiSoftware, cards: int, torch: TorchBuild | None) -> list[Clash]:
    """What cannot work among the visible Gaudi `cards`, their software and torch (None: it cannot be imported)."""
    plugin, emulator = software.plugin, software.emulator
    clashes = []
    if plugin is not None and emulator is not None:
        clashes.append(
            Clash(
                f"{PLUGIN_DISTRIBUTION} {plugin} with {EMULATOR_DISTRIBUTION} {emulator}",
                "both make the device hpu; the emulator refuses to load beside Intel's plugin, and with it torch",
                f"pip uninstall {EMULATOR_DISTRIBUTION}",
            )
        )
    if cards and plugin is None:
        instead = "emulated ones would be used in their place" if emulator else "they cannot be used"
        clashes.append(
            Clash(
                f"{cards} Gaudi card(s) without {PLUGIN_DISTRIBUTION}",
                f"Intel's plugin for PyTorch is not in this environment: {instead}",
                "use the Python of a Gaudi image (docs/gaudi.md), not a virtual environment without its packages"
                + (f", and pip uninstall {EMULATOR_DISTRIBUTION}" if emulator else ""),
            )
        )
    return clashes + _torch_clashes(plugin, torch)


def _torch_clashes(plugin: str | None, torch: TorchBuild | None) -> list[Clash]:
    """Intel's plugin beside a torch that is surely not the one it was compiled for."""
    if plugin is None or torch is None:
        return []
    found = f"{PLUGIN_DISTRIBUTION} {plugin} with torch {torch.version}"
    cure = "start again from the Gaudi image, and install nothing that brings a torch (requirements-hpu*.txt do not)"
    if torch.cuda is not None or _OTHER_BUILDS.search(torch.version):
        return [
            Clash(found, "this torch was built for another device; it has replaced the Gaudi image's", cure)
        ]
    of_torch, of_plugin = _RELEASE_OF_TORCH.search(torch.version), _RELEASE_OF_PLUGIN.match(plugin)
    if of_torch and of_plugin and of_torch[1] != of_plugin[0]:
        return [Clash(found, f"this torch was built for Gaudi software {of_torch[1]}", cure)]
    return []
