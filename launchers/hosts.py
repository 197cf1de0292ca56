"""The other machines: host files, the place a cluster manager gave this process, addresses and ports."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launchers.errors import LaunchError

#: torch.distributed's own default; used between machines, where a port must be known in advance.
DEFAULT_PORT = 29500


@dataclass(frozen=True)
class Host:
    """A machine by its name or address. `slots`: processes it is to run; None means one per accelerator."""

    name: str
    slots: int | None = None


@dataclass(frozen=True)
class Machines:
    """The machines of a job in the order of their ranks. `hosts` is empty where only their number is known.

    `hostfile` is where they stand, for launchers that read it themselves.
    """

    count: int
    hosts: tuple[Host, ...] = ()
    hostfile: str | None = field(default=None, compare=False)


def parse_hostfile(text: str, file_name: str) -> Machines:
    """Read lines of `host` or `host slots=8`; '#' starts a comment.

    Raises:
        LaunchError: a line is not of that form or names a host twice, or no line names one.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{file_name}:{number}"
        match = re.fullmatch(r"slots=([1-9]\d*)", words[1]) if len(words) == 2 else None
        if len(words) > 2 or (len(words) == 2 and match is None):
            raise LaunchError(f"{where}: found '{line.strip()}'; write 'host' or 'host slots=8'")
        if words[0] in hosts:
            raise LaunchError(
                f"{where}: host '{words[0]}' is named twice; give it one line with all its slots"
            )
        hosts[words[0]] = Host(words[0], int(match.group(1)) if match else None)
    if not hosts:
        raise LaunchError(f"{file_name}: names no host; write one 'host slots=8' a line")
    return Machines(len(hosts), tuple(hosts.values()))


def read_hostfile(path: str) -> Machines:
    """`parse_hostfile` on a file.

    Raises:
        LaunchError: the file cannot be read, or `parse_hostfile` refuses a line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise LaunchError(f"--hostfile {path}: {reason}; give a file of 'host slots=8' lines") from error
    return replace(parse_hostfile(text, path), hostfile=path)


def parse_machines(value: str) -> Machines:
    """Read `--machines`: their number, or their names separated by commas.

    Raises:
        LaunchError: the number is 0, or a name is empty or comes twice.
    """
    if value.isdigit():
        if int(value) == 0:
            raise LaunchError("--machines 0: give a number from 1, or host names separated by commas")
        return Machines(int(value))
    names = [name.strip() for name in value.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise LaunchError(f"--machines {value}: a name is empty or comes twice; write host1,host2")
    return Machines(len(names), tuple(Host(name) for name in names))


@dataclass(frozen=True)
class Placement:
    """The place that another launcher gave this process. `manager`: "torchrun", "mpi" or "slurm"."""

    manager: str
    rank: int
    world_size: int
    machines: int = 1
    machine_rank: int = 0
    first_host: str | None = None
    port: int | None = None


def placement(environ: Mapping[str, str]) -> Placement | None:
    """Who started this process, and which of how many it is; None when it was started alone.

    torchrun sets RANK and WORLD_SIZE, Open MPI OMPI_COMM_WORLD_*, MPICH and Intel MPI PMI_*, and a SLURM job
    step SLURM_STEP_* (an sbatch script outside a step runs once, alone, and gets None).
    """
    for manager, rank, size in (
        ("torchrun", "RANK", "WORLD_SIZE"),
        ("mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("mpi", "PMI_RANK", "PMI_SIZE"),
    ):
        if rank in environ and size in environ:
            return Placement(manager, int(environ[rank]), int(environ[size]))
    if "SLURM_STEP_NUM_NODES" not in environ or "SLURM_NODEID" not in environ:
        return None
    return Placement(
        "slurm",
        rank=int(environ.get("SLURM_PROCID", "0")),
        world_size=int(environ.get("SLURM_STEP_NUM_TASKS", "1")),
        machines=int(environ["SLURM_STEP_NUM_NODES"]),
        machine_rank=int(environ["SLURM_NODEID"]),
        first_host=first_of_nodelist(environ.get("SLURM_STEP_NODELIST", "")),
        # Jobs that share a machine must not share a port, and the machines of a job cannot talk yet.
        port=DEFAULT_PORT + int(environ.get("SLURM_JOB_ID", "0")) % 1000,
    )


def first_of_nodelist(nodes: str) -> str | None:
    """First name in SLURM's compact list: "gpu[003-006,9],cpu1" gives "gpu003"."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else None


def rank_of_this_machine(machines: Machines) -> int | None:
    """Place of this machine among the named hosts; None when it is none of them or they have no names."""
    return next((rank for rank, host in enumerate(machines.hosts) if is_this_machine(host.name)), None)


def is_this_machine(name: str) -> bool:
    """Whether the host name or address belongs to this machine: only then can a socket be bound to it."""
    if name.split(".")[0] == socket.gethostname().split(".")[0]:
        return True
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:  # no such name
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False


def free_port() -> int:
    """A TCP port that nothing listens on at this moment (another process may still take it first)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
