"""Picks the backend."""

from __future__ import annotations

from backends.base import Backend, BackendError
from backends.cpu import CPUBackend
from backends.cuda import CUDABackend

#: In the order in which `auto` tries them.
BACKENDS: dict[str, type[Backend]] = {"cuda": CUDABackend, "cpu": CPUBackend}


def resolve(device: str = "auto") -> Backend:
    """Return the backend for `--device`: "auto" takes the first that is available, the CPU last.

    Raises:
        BackendError: the device asked for is unknown or is not to be had here; the message says how to get it.
    """
    if device == "auto":
        return next(backend() for backend in BACKENDS.values() if backend.available().ok)
    if device in ("hpu", "habana"):
        raise BackendError(
            "--device hpu: this version has no Gaudi backend; choose --device cuda, cpu or auto, "
            "and leave --use_habana out"
        )
    if device not in BACKENDS:
        raise BackendError(f"--device {device}: unknown; choose auto, {', '.join(BACKENDS)}")
    availability = BACKENDS[device].available()
    if not availability.ok:
        raise BackendError(f"--device {device}: {availability.reason}; or use --device auto")
    return BACKENDS[device]()
