"""`rlhf-hw doctor`: what the machine has, what is installed, what fits together and what does not.

Works where the installation does not: it imports torch and the backends only if they can be imported, and says
what stopped them. It prints no host name, no user name and no token, so its output can go into a bug report.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launchers import LaunchError, LaunchRequest, Machine, make_plan
from launchers.machine import cpu_description, cpu_quota, memory_bytes, memory_limit_bytes, this_machine
from rlhf_hw.compat.combinations import PACKAGES, Clash, TorchBuild, build_clashes, version_clashes
from rlhf_hw.compat.gaudi_software import GaudiSoftware, gaudi_clashes
from rlhf_hw.hpu_environment import LAZY_MODE_VARIABLE, set_lazy_mode

#: Not required by this project, but worth a line.
OPTIONAL_PACKAGES = ("bitsandbytes", "wandb", "deepspeed", "flash-attn", "liger-kernel")
#: Tokens whose presence matters; only whether they are set is ever shown.
TOKENS = ("HF_TOKEN", "WANDB_API_KEY")
#: What importing torch or a device's library raises where it is missing or broken. OSError: a shared library that it
#: needs is missing. RuntimeError: torch could not load a device's plugin.
_NOT_IMPORTABLE = (ImportError, OSError, RuntimeError)


@dataclass(frozen=True)
class BackendState:
    """Whether a backend can be used here, and why (not)."""

    ok: bool
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything doctor found. `packages` maps a name to its version, None where it is not installed.

    `gaudi` is empty where there is neither a Gaudi nor any software for it.
    """

    machine: dict[str, Any]
    python: str
    packages: dict[str, str | None]
    torch: TorchBuild | None
    tokens: dict[str, str]
    backends: dict[str, BackendState]
    gaudi: dict[str, str]
    clashes: list[Clash]
    launch: dict[str, str]

    @property
    def can_train(self) -> bool:
        """Whether training can run on some backend with nothing broken."""
        return not self.clashes and any(state.ok for state in self.backends.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis. Returns 0 when training can run somewhere, 1 when something is broken."""
    parser = argparse.ArgumentParser(
        prog="rlhf-hw doctor",
        description="What this machine has, what is installed and whether it fits together. "
        "Exit status 1 when something does not.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args(argv)
    diagnosis = diagnose()
    if arguments.json:
        print(json.dumps({**asdict(diagnosis), "can_train": diagnosis.can_train}, indent=2))
    else:
        print_tables(diagnosis)
    return 0 if diagnosis.can_train else 1


def diagnose(environ: Mapping[str, str] = os.environ) -> Diagnosis:
    """Look at the machine, the installation and the environment."""
    machine = this_machine(environ)
    packages = {name: _installed_version(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)}
    python = platform.python_version()
    software = GaudiSoftware.installed()  # before torch, which may not import beside two plugins
    build: TorchBuild | None = None
    gpus: list[dict[str, Any]] = []
    backends: dict[str, BackendState] = {}
    gaudi = _gaudi_software(machine.gaudis, software)
    broken: list[Clash] = []
    try:
        build = _torch_build()
        backends = _backends()
        gpus = _cuda_devices()
        build = replace(build, sees_gpu=bool(gpus))
        gaudi = _gaudi(machine.gaudis, software, environ)
    except _NOT_IMPORTABLE as error:
        # and not tried again: a half-imported torch ends the process with SIGSEGV when it is imported once more
        broken = [_not_importable(error)]
    versions = {name: version for name, version in packages.items() if version is not None}
    return Diagnosis(
        machine=_machine_facts(machine, gpus),
        python=python,
        packages=packages,
        torch=build,
        tokens={name: "set" if environ.get(name) else "not set" for name in TOKENS},
        backends=backends,
        gaudi=gaudi,
        clashes=[
            *version_clashes({**versions, "python": python}),
            *build_clashes(build, len(machine.nvidia_gpus)),
            *gaudi_clashes(software, machine.gaudis, build),
            *broken,
        ],
        launch=_launch(machine, environ),
    )


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine_facts(machine: Machine, gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Processor, memory and accelerators; memory in bytes, None where it is unknown or unlimited."""
    model, features = cpu_description()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cores": machine.cores,
        "cores_reason": machine.core_reason,
        "cgroup_cpus": cpu_quota(),
        "cpu_features": list(features),
        "memory_bytes": memory_bytes(),
        "cgroup_memory_bytes": memory_limit_bytes(),
        "nvidia_gpus": [gpu.name for gpu in machine.nvidia_gpus],
        "cuda_devices": gpus,
        "gaudis": machine.gaudis,
    }


def _torch_build() -> TorchBuild:
    """What torch was built for. Raises one of _NOT_IMPORTABLE where it cannot be imported."""
    import torch

    return TorchBuild(torch.__version__, torch.version.cuda, sees_gpu=False)


def _cuda_devices() -> list[dict[str, Any]]:
    """The GPUs that torch sees, as their backend describes them."""
    from backends.cuda import CUDABackend

    return [asdict(card) for card in CUDABackend.cards()]


def _backends() -> dict[str, BackendState]:
    """Each backend's own answer. Raises one of _NOT_IMPORTABLE where the backends cannot be imported."""
    from backends import BACKENDS

    states = {}
    for name, backend in BACKENDS.items():
        try:
            availability = backend.available()
        except _NOT_IMPORTABLE as error:  # a device's library that is installed and broken
            states[name] = BackendState(False, f"{type(error).__name__}: {_without_home(error)}")
        else:
            states[name] = BackendState(availability.ok, availability.reason)
    return states


def _not_importable(error: BaseException) -> Clash:
    """What kept torch or the backends from being imported; of a device's plugin that torch loads, its own reason."""
    cause = error.__cause__ or error
    return Clash(
        "torch or the backends cannot be imported",
        f"{type(cause).__name__}: {_without_home(cause)}",
        "install what is missing; where it is installed, its versions clash: reinstall the requirements",
    )


def _without_home(error: BaseException) -> str:
    return str(error).replace(str(Path.home()), "~").rstrip(".")


def _gaudi_software(cards: int, software: GaudiSoftware) -> dict[str, str]:
    """The Gaudis, real or emulated; nothing where there is neither a card nor any software for it."""
    if software == GaudiSoftware() and not cards:
        return {}
    found = {
        "cards": f"{cards} visible" if cards else "none visible",
        "habana-torch-plugin": software.plugin or "not installed",
    }
    if software.emulator is not None:
        found["emulator"] = (
            f"{software.emulator}: CPU memory as hpu; --device hpu takes it, --device auto never does"
        )
    return found


def _gaudi(cards: int, software: GaudiSoftware, environ: Mapping[str, str]) -> dict[str, str]:
    """The same with what a run with `--device hpu` and no other flag would choose."""
    from backends.hpu import HPUBackend

    found = _gaudi_software(cards, software)
    if not found:
        return {}
    backend, would_have = HPUBackend(), dict(environ)
    set_lazy_mode(["--device", "hpu"], would_have)
    said = "as the environment says" if LAZY_MODE_VARIABLE in environ else "not set; --device hpu sets it"
    return found | {
        "runtime": f"{backend.runtime.value} ({backend.runtime.reason})",
        "mode": f"{backend.lazy_mode.value} ({backend.lazy_mode.reason})",
        LAZY_MODE_VARIABLE: f"{would_have[LAZY_MODE_VARIABLE]} ({said})",
    }


def _launch(machine: Machine, environ: Mapping[str, str]) -> dict[str, str]:
    """What `rlhf-hw launch sft` would run here. "python" stands for the interpreter, whose path names a user."""
    request = LaunchRequest(module="rlhf_hw.cli.sft", python="python")
    try:
        plan = make_plan(request, machine, environ)
    except LaunchError as error:
        return {"command": "", "reason": str(error)}
    return {"command": plan.shell(), "reason": plan.reason}


# What is shown


def print_tables(diagnosis: Diagnosis) -> None:
    """Print a table a section: with rich on a terminal, as aligned text in a pipe or where rich is missing."""
    sections = {
        "Machine": _machine_rows(diagnosis.machine),
        "Software": _software_rows(diagnosis),
        "Backends": [
            (name, f"{'available' if state.ok else 'not available'}: {state.reason}")
            for name, state in diagnosis.backends.items()
        ],
        **({"Gaudi": list(diagnosis.gaudi.items())} if diagnosis.gaudi else {}),
        "rlhf-hw launch sft would run": [
            ("command", diagnosis.launch["command"] or "nothing"),
            ("why", diagnosis.launch["reason"]),
        ],
        "What does not fit together": [
            (clash.found, f"{clash.reason}. Cure: {clash.cure}") for clash in diagnosis.clashes
        ]
        or [("nothing", "training can run" if diagnosis.can_train else "but no backend is available")],
    }
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _print_with_rich(sections)
        return
    for title, rows in sections.items():
        width = max((len(name) for name, _ in rows), default=0)
        print(f"{title}\n" + "".join(f"  {name:<{width}}  {value}\n" for name, value in rows))


def _print_with_rich(sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, rows in sections.items():
        table = Table(show_header=False, box=None, padding=(0, 0, 0, 2))
        for name, value in rows:
            table.add_row(Text(name, style="cyan"), Text(value))
        console.print(Text(title, style="bold"), table, "", sep="\n")


def _machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("system", machine["system"]),
        ("CPU", machine["cpu"]),
        ("cores", machine["cores_reason"]),
        ("CPU features", ", ".join(machine["cpu_features"]) or "none of those that speed up training"),
        ("memory", _gib(machine["memory_bytes"])),
    ]
    if machine["cgroup_memory_bytes"] is not None:
        rows.append(("memory limit", f"{_gib(machine['cgroup_memory_bytes'])} (cgroup)"))
    rows += [(f"GPU {index}", name) for index, name in enumerate(machine["nvidia_gpus"])]
    rows += [
        (
            f"torch's cuda:{index}",
            f"{gpu['name']}, {_gib(gpu['memory_bytes'])}, compute capability {gpu['compute_capability']}, "
            f"{'bf16' if gpu['bf16'] else 'no bf16'}",
        )
        for index, gpu in enumerate(machine["cuda_devices"])
    ]
    if machine["gaudis"]:
        rows.append(("Gaudi cards", str(machine["gaudis"])))
    if not machine["nvidia_gpus"] and not machine["gaudis"]:
        rows.append(("accelerators", "none visible"))
    return rows


def _software_rows(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    rows = [("python", diagnosis.python)]
    for name, version in diagnosis.packages.items():
        shown = version or "not installed"
        if name == "torch" and diagnosis.torch is not None:
            cuda = diagnosis.torch.cuda
            shown += f" (built for CUDA {cuda})" if cuda else " (built without CUDA)"
        rows.append((name, shown))
    return rows + list(diagnosis.tokens.items())


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
