"""What this machine has, found without torch: cores, memory, NVIDIA GPUs and Gaudis.

Paths are read below `root`, so that a test can lay out another machine in a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Vendor of Gaudi cards. Other accelerators (laptop NPUs) appear under /dev/accel as well.
HABANA_PCI_VENDOR = "0x1da3"
#: Features worth knowing before training on a CPU, as /proc/cpuinfo spells them (x86 and Arm).
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "bf16", "i8mm", "sve")


@dataclass(frozen=True)
class NvidiaGpu:
    """A line of `nvidia-smi -L`: a GPU, or one of the MIG slices of the GPU before it."""

    name: str
    uuid: str = ""
    is_mig: bool = False


@dataclass(frozen=True)
class Machine:
    """What a launcher needs to know of the machine it runs on.

    `sockets`: cores of each processor socket. `confined`: what keeps this process from a part of them, "" if nothing
    does. `emulated`: the Gaudis are CPU memory.
    """

    cores: int
    core_reason: str
    nvidia_gpus: tuple[NvidiaGpu, ...] = ()
    gaudis: int = 0
    sockets: tuple[int, ...] = ()
    confined: str = ""
    emulated: bool = False

    @property
    def backend(self) -> str:
        """The backend that "auto" means here."""
        if self.nvidia_gpus:
            return "cuda"
        return "hpu" if self.gaudis else "cpu"

    def accelerators(self, backend: str) -> int:
        """Devices of a backend; the CPU has none."""
        return {"cuda": len(self.nvidia_gpus), "hpu": self.gaudis}.get(backend, 0)


def this_machine(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Machine:
    """Look at this machine through the eyes of a process with this environment."""
    affinity = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    )
    quota = cpu_quota(root)
    cores, reason = usable_cores(physical_cores(affinity, root), quota)
    return Machine(
        cores,
        reason,
        nvidia_gpus(environ, root),
        gaudis(environ, root),
        sockets=cores_of_sockets(affinity, root),
        confined=confinement(affinity, quota, root),
    )


# Processor and memory


def physical_cores(cpus: set[int], root: Path = Path("/")) -> int:
    """Cores behind the logical CPUs a process may run on: hyperthreads of one core do no arithmetic in parallel."""
    topology = root / "sys/devices/system/cpu"
    return len({_read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def cores_of_sockets(cpus: set[int], root: Path = Path("/")) -> tuple[int, ...]:
    """Physical cores behind the CPUs, a number for each socket that has any."""
    sockets: dict[str, set[int]] = {}
    for cpu in cpus:
        package = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id")
        sockets.setdefault(package, set()).add(cpu)
    return tuple(physical_cores(sockets[package], root) for package in sorted(sockets))


def confinement(cpus: set[int], quota: float | None, root: Path = Path("/")) -> str:
    """What keeps the process from some of the machine's CPUs: a quota, or an affinity mask; "" if nothing does."""
    online = cpu_list(_read(root / "sys/devices/system/cpu/online"))
    if quota is not None and quota < len(cpus):
        return f"a cgroup quota of {quota:g} of {len(cpus)} CPUs"
    if len(online) > len(cpus):
        return f"an affinity mask of {len(cpus)} of {len(online)} CPUs"
    return ""


def cpu_list(text: str) -> set[int]:
    """Read the kernel's list of CPUs: "0-3,8" gives 0, 1, 2, 3 and 8."""
    cpus: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def usable_cores(allowed: int, quota: float | None) -> tuple[int, str]:
    """Cores that can be kept busy, given those the process may run on and the cgroup's quota; and why."""
    if quota is not None and quota < allowed:
        return max(1, int(quota)), f"a cgroup quota of {quota:g} out of {allowed} cores"
    return allowed, f"{allowed} core{'s' * (allowed != 1)}"


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The tightest cgroup CPU quota above this process, in cores; None where there is none."""
    quotas = []
    for folder in _cgroup_folders("cpu", root):
        words = _read(folder / "cpu.max").split()  # v2: "200000 100000" or "max 100000", in microseconds
        if not words:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory of the machine, from /proc/meminfo; None where that cannot be read."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The tightest cgroup memory limit below the machine's memory; None where there is none."""
    limits = []
    for folder in _cgroup_folders("memory", root):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if text.isdigit():
            limits.append(int(text))
    total = memory_bytes(root)
    tightest = min(limits, default=None)
    return None if tightest is None or (total is not None and tightest >= total) else tightest


def cpu_description(root: Path = Path("/")) -> tuple[str, tuple[str, ...]]:
    """Model name and those of CPU_FEATURES that it has, from /proc/cpuinfo."""
    text = _read(root / "proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return (
        model.group(1).strip() if model else "unknown",
        tuple(feature for feature in CPU_FEATURES if feature in present),
    )


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders that may hold a controller's limits for this process, from its own cgroup up to the root.

    /proc/self/cgroup has lines "hierarchy:controllers:path"; v2 has one, without controllers. In a container
    the path may lie outside what is mounted: the mount's root, yielded last, is then the container's own.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = Path(path.strip("/"))
        yield from (mount / part for part in (inner, *inner.parents) if part != Path("."))
        yield mount


def _read(path: Path) -> str:
    """The file's text, or "" where the system has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


# Accelerators


def nvidia_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[NvidiaGpu, ...]:
    """NVIDIA GPUs that a CUDA program with this environment would see.

    Asks `nvidia-smi -L` where it is installed and answers, and else counts /dev/nvidia0, /dev/nvidia1, …
    """
    found = parse_nvidia_smi(output_of("nvidia-smi", "-L", path=environ.get("PATH")))
    if not found:
        nodes = [node for node in (root / "dev").glob("nvidia[0-9]*") if node.name[6:].isdigit()]
        found = [NvidiaGpu("NVIDIA GPU") for _ in nodes]
    return visible_gpus(found, environ.get("CUDA_VISIBLE_DEVICES"))


def parse_nvidia_smi(text: str) -> list[NvidiaGpu]:
    """Read `nvidia-smi -L`: "GPU 0: NAME (UUID: GPU-…)", MIG slices indented below their GPU."""
    lines = re.findall(
        r"^(\s*)(?:GPU \d+: |MIG )(.+?)\s+(?:Device\s+\d+: )?\(UUID: ([^)]+)\)", text, re.MULTILINE
    )
    return [NvidiaGpu(name.strip(), uuid, uuid.startswith("MIG-")) for _, name, uuid in lines]


def visible_gpus(found: list[NvidiaGpu], listed: str | None) -> tuple[NvidiaGpu, ...]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does: indices or UUIDs; the first unknown entry ends the list.

    Without the variable a process sees every GPU, or one MIG slice where the GPUs are sliced
    (CUDA C++ Programming Guide, "CUDA Environment Variables"; NVIDIA MIG User Guide, "Device enumeration").
    """
    whole = [gpu for gpu in found if not gpu.is_mig]
    if listed is None:
        slices = [gpu for gpu in found if gpu.is_mig]
        return tuple(slices[:1] or whole)
    visible: list[NvidiaGpu] = []
    for entry in (part.strip() for part in listed.split(",")):
        if entry.isdigit() and int(entry) < len(whole):
            visible.append(whole[int(entry)])
            continue
        by_uuid = [gpu for gpu in found if entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)]
        if not by_uuid:
            break
        visible.append(by_uuid[0])
    return tuple(visible)


def gaudis(environ: Mapping[str, str], root: Path = Path("/")) -> int:
    """Gaudi cards that a program with this environment would see.

    Counts the /dev/accel nodes whose PCI vendor is Habana; where a container hides /sys, all of them if
    `hl-smi` is installed. HABANA_VISIBLE_DEVICES and HABANA_VISIBLE_MODULES, lists or "all", may hide some.
    """
    count = 0
    for node in (root / "dev/accel").glob("accel[0-9]*"):
        vendor = _read(root / "sys/class/accel" / node.name / "device/vendor")
        hidden_sys = not vendor and shutil.which("hl-smi", path=environ.get("PATH")) is not None
        count += vendor == HABANA_PCI_VENDOR or hidden_sys
    for variable in ("HABANA_VISIBLE_DEVICES", "HABANA_VISIBLE_MODULES"):
        listed = environ.get(variable, "all")
        if listed != "all":
            count = min(count, len([entry for entry in listed.split(",") if entry.strip()]))
    return count


def output_of(program: str, *arguments: str, path: str | None) -> str:
    """What a program prints, or "" where it is not on `path` (None: PATH), fails or hangs."""
    found = shutil.which(program, path=path)
    if found is None:
        return ""
    try:
        done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
