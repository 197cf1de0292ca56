"""The environment variables of the emulator. Each function reads its variable when called.

| variable | meaning |
|---|---|
| HPU_EMULATOR_DEVICES | devices to show; default: as many as there are local processes, else 1 |
| HPU_EMULATOR_MEMORY | capacity of each device: bytes, or a number with KB, MB, GB, TB, KiB ... |
| HPU_EMULATOR_DEVICE_NAME | GAUDI, GAUDI2 (default) or GAUDI3; sets the default capacity too |
| HPU_EMULATOR_STRICT | 1 for all, or of `dtypes,fallback_ops,devices`: raise where hardware would refuse or stall |
| HPU_EMULATOR_TOLERATE_CPU_TENSORS | 1: CPU tensors of any size may take part in operations on HPU tensors |
| HPU_EMULATOR_GRAPHS | 1: count graphs and report at exit; anything else: the path of a JSON report |
| HPU_EMULATOR_QUIET | 1: no notice that this is an emulation |
| PT_HPU_LAZY_MODE | 1 (default): graphs between flushes; 0: eager |
"""

from __future__ import annotations

import os
import re

STRICT_KINDS = ("dtypes", "fallback_ops", "devices")
# Capacity in bytes. Gaudi 1 has 32 GB, 2 has 96 GB, 3 has 128 GB of HBM.
CAPACITY = {"GAUDI": 32 * 10**9, "GAUDI2": 96 * 10**9, "GAUDI3": 128 * 10**9}
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}IB": 1024**_power, f"{_letter}B": 1000**_power}


def _flag(name: str, default: str = "0") -> bool:
    return os.environ.get(name, default).strip().lower() not in ("", "0", "false", "no", "off")


def parse_bytes(text: str) -> int:
    """Bytes from `96GB`, `512MiB`, `1.5G` or `1000000`; ValueError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match.group(2).upper() not in _UNITS:
        raise ValueError(f"expected a number of bytes such as 96GB, 512MiB or 1000000, found {text!r}")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def parse_strict(text: str) -> frozenset[str]:
    """The kinds of strictness named in `text`; ValueError on an unknown one."""
    text = text.strip().lower()
    if text in ("", "0", "false", "no", "off"):
        return frozenset()
    if text in ("1", "true", "yes", "on", "all"):
        return frozenset(STRICT_KINDS)
    kinds = frozenset(part.strip() for part in text.split(",") if part.strip())
    unknown = kinds.difference(STRICT_KINDS)
    if unknown:
        raise ValueError(f"unknown kind(s) {sorted(unknown)}; choose from {', '.join(STRICT_KINDS)}")
    return kinds


def _read(name: str, parse, default):  # type: ignore[no-untyped-def]
    text = os.environ.get(name)
    if text is None or not text.strip():
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def device_count() -> int:
    """Devices to show: HPU_EMULATOR_DEVICES, else one for each local process."""
    for name in ("HPU_EMULATOR_DEVICES", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        count: int | None = _read(name, int, None)
        if count is not None:
            if not 1 <= count <= 64:
                raise ValueError(f"{name}: the emulator shows 1 to 64 devices, not {count}")
            return count
    return 1


def device_name() -> str:
    """GAUDI, GAUDI2 or GAUDI3."""
    name = os.environ.get("HPU_EMULATOR_DEVICE_NAME", "GAUDI2").strip().upper()
    if name not in CAPACITY:
        raise ValueError(f"HPU_EMULATOR_DEVICE_NAME: choose from {', '.join(CAPACITY)}, not {name!r}")
    return name


def memory_limit() -> int:
    """Capacity of one device in bytes."""
    limit: int = _read("HPU_EMULATOR_MEMORY", parse_bytes, CAPACITY[device_name()])
    return limit


def strict() -> frozenset[str]:
    """What raises although the emulator could do it; a subset of STRICT_KINDS."""
    kinds: frozenset[str] = _read("HPU_EMULATOR_STRICT", parse_strict, frozenset())
    return kinds


def tolerate_cpu_tensors() -> bool:
    return _flag("HPU_EMULATOR_TOLERATE_CPU_TENSORS")


def quiet() -> bool:
    return _flag("HPU_EMULATOR_QUIET")


def graphs() -> str | None:
    """None: do not count graphs. Empty: report on stderr at exit. Else the path of the JSON report."""
    text = os.environ.get("HPU_EMULATOR_GRAPHS", "").strip()
    if text in ("", "0"):
        return None
    return "" if text == "1" else text


def lazy_mode() -> bool:
    """Whether graphs are collected between flushes, as upstream transformers too takes for the default."""
    return _flag("PT_HPU_LAZY_MODE", "1")
