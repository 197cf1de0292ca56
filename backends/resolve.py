"""Picks the backend."""

from __future__ import annotations

import os

from backends.base import Backend, BackendError
from backends.cpu import CPUBackend
from backends.cuda import CUDABackend
from backends.hpu import HPUBackend, HPUSettings

#: Set by a launcher that has made its processes for one kind of device: what "auto" then means.
DEVICE_VARIABLE = "RLHF_HW_DEVICE"
#: In the order in which `auto` tries them.
BACKENDS: dict[str, type[Backend]] = {"cuda": CUDABackend, "hpu": HPUBackend, "cpu": CPUBackend}


def resolve(device: str = "auto", hpu: HPUSettings | None = None) -> Backend:
    """Return the backend for `--device`: "auto" takes the first that is available, the CPU last.

    An emulated device is for finding bugs, and slower than the CPU it runs on: "auto" passes over it. `hpu`: what
    was said about a Gaudi, should it be one.

    Raises:
        BackendError: the device asked for is unknown or is not to be had here; the message says how to get it.
    """
    if device == "auto":
        device = os.environ.get(DEVICE_VARIABLE, "auto")
    if device == "auto":
        device = next(
            name for name, backend in BACKENDS.items() if not backend.emulated() and backend.available().ok
        )
    if device == "habana":
        device = "hpu"
    if device not in BACKENDS:
        raise BackendError(f"--device {device}: unknown; choose auto, {', '.join(BACKENDS)}")
    availability = BACKENDS[device].available()
    if not availability.ok:
        raise BackendError(f"--device {device}: {availability.reason}; or use --device auto")
    return HPUBackend(hpu) if device == "hpu" else BACKENDS[device]()
