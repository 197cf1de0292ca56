"""The records that pass between a request to launch and the command that answers it."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchers.hosts import Machines


@dataclass(frozen=True)
class LaunchRequest:
    """What a user wants started. `None` and "auto" mean: choose for me.

    Exactly one of `module` (run as `python -m`) and `script` (a file) is given. `processes` counts those on
    each machine. `machine_rank` is this machine's place among `machines`, from 0.
    """

    module: str | None = None
    script: str | None = None
    script_args: tuple[str, ...] = ()
    backend: str = "auto"
    processes: int | None = None
    machines: Machines | None = None
    machine_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    launcher: str = "auto"
    python: str = sys.executable


@dataclass(frozen=True)
class Job:
    """A request with every choice made: what a launcher turns into a command.

    `target` is the tail of the command, `-m module args` or `script args`. `processes` holds one count per
    machine, in the order of their ranks. `master_port` is None where the launcher may find a free one.
    """

    python: str
    target: tuple[str, ...]
    backend: str
    processes: tuple[int, ...]
    machine_rank: int
    master_addr: str
    master_port: int | None

    @property
    def local_processes(self) -> int:
        """Processes on this machine."""
        return self.processes[self.machine_rank]

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return sum(self.processes)


@dataclass(frozen=True)
class LaunchPlan:
    """A command, what it adds to the environment, and why it is this one."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def shell(self) -> str:
        """The plan as one line to paste into a POSIX shell."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.command)])
