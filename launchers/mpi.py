"""Several processes with Open MPI's `mpirun`, on one machine or more, each bound to its own cores where that can be.

mpirun only starts the processes: they meet through torch.distributed (hccl, nccl, gloo), at MASTER_ADDR. It reaches
the other machines with ssh, so the command is given once, on the first machine. The words are those that Open MPI 4
and 5 share.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from launchers.errors import LaunchError
from launchers.failures import BY_STDERR, FOLDER_VARIABLE
from launchers.hosts import DEFAULT_PORT, free_port
from launchers.machine import Machine, output_of
from launchers.rank import END_SIGNAL, LAUNCHED_BY
from launchers.records import Job, LaunchPlan

#: Variables that the processes on other machines are given too, by their beginnings. Names alone stand in the command.
FORWARDED = (
    "ACCELERATE_",
    "CUDA_",
    "DS_",
    "FI_",
    "GLOO_",
    "HABANA_",
    "HCCL_",
    "HF_",
    "HPU_EMULATOR_",
    "LD_LIBRARY_PATH",
    "LOG_LEVEL_",
    "NCCL_",
    "OMP_",
    "PATH",
    "PT_",
    "PYTHON",
    "RLHF_HW_",
    "TOKENIZERS_",
    "TORCH",
    "TRANSFORMERS_",
    "WANDB_",
)
#: Those among them that mean this machine's own.
KEPT_HERE = (FOLDER_VARIABLE, LAUNCHED_BY, "PYTHONSTARTUP")


def installed(environ: Mapping[str, str]) -> bool:
    """Whether an mpirun is on PATH."""
    return shutil.which("mpirun", path=environ.get("PATH", "")) is not None


def plan(job: Job) -> LaunchPlan:
    """Start the job, on all its machines, with mpirun.

    Raises:
        LaunchError: there is no Open MPI here, or the machines have no names.
    """
    check_open_mpi(job.environ)
    several = len(job.processes) > 1
    words, reason = binding(job.world_size if not several else max(job.processes), job.machine)
    command = ["mpirun", "-n", str(job.world_size)]
    if several:
        if not job.hosts:
            raise LaunchError(
                "--launcher mpirun: needs the machines' names; give --hostfile, or --machines host1,host2"
            )
        slots = zip(job.hosts, job.processes, strict=True)
        command += ["--host", ",".join(f"{host.name}:{count}" for host, count in slots)]
    command += [*words, "--report-bindings"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    port = job.master_port or (DEFAULT_PORT if several else free_port())
    command += ["-x", f"MASTER_ADDR={job.master_addr}", "-x", f"MASTER_PORT={port}"]
    if several:
        command += ["-x", f"{FOLDER_VARIABLE}={BY_STDERR}"]
        for name in forwarded_names({**job.environ, **job.environment}):
            command += ["-x", name]
    where = f" on {len(job.processes)} machines" if several else ""
    return LaunchPlan(
        [*command, job.python, *job.ranked_target],
        reason=f"mpirun starts {job.world_size} process{'es' * (job.world_size > 1)}{where}; {reason}",
        several=True,
        everywhere=several,
        end_signal=END_SIGNAL,
    )


def check_open_mpi(environ: Mapping[str, str]) -> None:
    """Refuse a machine without mpirun, or with another MPI's, whose flags differ.

    Raises:
        LaunchError: as said.
    """
    if not installed(environ):
        raise LaunchError(
            "--launcher mpirun: no mpirun on PATH; install Open MPI (apt-get install openmpi-bin), or use --launcher torchrun"
        )
    version = output_of("mpirun", "--version", path=environ.get("PATH"))
    if "Open MPI" not in version:
        found = version.splitlines()[0] if version else "nothing"
        raise LaunchError(
            f"--launcher mpirun: 'mpirun --version' says '{found}', and Open MPI is needed; put it first on PATH, or use "
            "--launcher torchrun"
        )


def binding(processes: int, machine: Machine) -> tuple[list[str], str]:
    """mpirun's words that give each of the machine's processes cores of its own, or that leave them free; and why.

    Processes are dealt to the sockets in turn, and each takes as many cores as the fullest socket can give.
    """
    unbound = ["--bind-to", "none", "--map-by", "slot"]
    if not machine.sockets:
        return unbound, "no core binding, since this machine's sockets are not known"
    cores = sum(machine.sockets)
    if processes > machine.cores or processes > cores:
        return [*unbound, "--oversubscribe"], (
            f"no core binding, since there are fewer cores ({machine.core_reason}) than processes"
        )
    if machine.confined:
        return unbound, f"no core binding, since this is a part of a machine: {machine.confined}"
    if processes < len(machine.sockets):
        return (
            unbound,
            f"no core binding, since one process may use several of the {len(machine.sockets)} sockets",
        )
    fullest = -(-processes // len(machine.sockets))
    share = min(cores // processes, min(machine.sockets) // fullest)
    if share < 1:
        return (
            unbound,
            f"no core binding, since {fullest} processes do not fit a socket of {min(machine.sockets)} cores",
        )
    words = ["--bind-to", "core", "--map-by", f"socket:PE={share}", "--rank-by", "slot"]
    return words, f"each bound to {share} core{'s' * (share > 1)} of {cores}"


def forwarded_names(environ: Mapping[str, str]) -> list[str]:
    """The variables of FORWARDED that are set, sorted."""
    return sorted(name for name in environ if name.startswith(FORWARDED) and name not in KEPT_HERE)
