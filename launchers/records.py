"""The records that pass between a request to launch and the command that answers it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launchers.shown_commands import shell_command

if TYPE_CHECKING:
    from launchers.hosts import Host, Machines
    from launchers.machine import Machine

#: Stands beside each of several training processes. Given by its path: the interpreter need not know this package.
RANK_PROGRAM = str(Path(__file__).resolve().parent / "rank.py")


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
    machine, in the order of their ranks. `master_port` is None where the launcher may find a free one. `environ` is what
    the user set, `environment` what the plan will add to it. `hosts` may be empty; `machine` is this one.
    """

    python: str
    target: tuple[str, ...]
    backend: str
    processes: tuple[int, ...]
    machine_rank: int
    master_addr: str
    master_port: int | None
    machine: Machine
    environ: Mapping[str, str]
    environment: Mapping[str, str]
    hosts: tuple[Host, ...] = ()
    hostfile: str | None = None

    @property
    def ranked_target(self) -> tuple[str, ...]:
        """The tail of the command of several processes: each is watched by `launchers.rank`."""
        return (RANK_PROGRAM, *self.target)

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
    """A command, what it adds to the environment, and why it is this one.

    `several`: it starts processes that are watched by `launchers.rank`. `everywhere`: also those of the other machines.
    `end_signal`: what it passes on to them and they end of, where it would hardly wait for them after SIGTERM.
    """

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    several: bool = False
    everywhere: bool = False
    end_signal: int | None = None

    def shell(self) -> str:
        """The plan as one line to paste into a POSIX shell, without secrets: see `launchers.shown_commands`."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shell_command(self.command)])
