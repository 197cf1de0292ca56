"""From what a user asked to the command that does it, with every choice explained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from launchers import accelerate, deepspeed, mpi, single, torchrun
from launchers.errors import LaunchError
from launchers.hosts import DEFAULT_PORT, Machines, Placement, placement
from launchers.installed import EMULATOR_DISTRIBUTION, has_emulator
from launchers.machine import Machine, this_machine
from launchers.records import Job, LaunchPlan, LaunchRequest
from launchers.script_arguments import uses_deepspeed

#: A launcher turns a job into this machine's command, or (mpirun, deepspeed) into that of all machines.
LAUNCHERS: dict[str, Callable[[Job], LaunchPlan]] = {
    "python": single.plan,
    "torchrun": torchrun.plan,
    "accelerate": accelerate.plan,
    "mpirun": mpi.plan,
    "deepspeed": deepspeed.plan,
}
#: Those that start the processes of the other machines too.
REACH_OTHERS = ("mpirun", "deepspeed")

_DEVICE_NAMES = {"cuda": "NVIDIA GPU", "hpu": "Gaudi"}


def make_plan(
    request: LaunchRequest, machine: Machine | None = None, environ: Mapping[str, str] = os.environ
) -> LaunchPlan:
    """Choose what the request leaves open and return this machine's command.

    `machine` is this machine (looked at when None); the others of a job are taken to be like it.

    Raises:
        LaunchError: a flag contradicts the machine, the environment or another flag.
    """
    machine = machine or this_machine(environ)
    request = _placed(request, placement(environ))
    machine = _emulated(request, machine)
    backend, backend_reason = _backend(request, machine)
    processes = _processes(request, machine, backend)
    launcher, launcher_reason = _launcher(request, backend, processes, environ)
    job = _job(request, machine, backend, processes, launcher, environ)
    environment, thread_reason = _environment(job)
    plan = LAUNCHERS[launcher](replace(job, environment=environment))
    reasons = [backend_reason, launcher_reason, plan.reason, thread_reason]
    return replace(
        plan,
        environment={**environment, **plan.environment},
        reason="; ".join(reason for reason in reasons if reason),
    )


def _emulated(request: LaunchRequest, machine: Machine) -> Machine:
    """The machine, with as many emulated Gaudis as are asked for, where Gaudis are asked for and emulation is all it has."""
    if request.backend != "hpu" or machine.gaudis > 0 or not has_emulator(request.python):
        return machine
    return replace(machine, gaudis=max(1, request.processes or 1), emulated=True)


def _launcher(
    request: LaunchRequest, backend: str, processes: tuple[int, ...], environ: Mapping[str, str]
) -> tuple[str, str]:
    """The launcher; and why, where it is another than one would expect."""
    if request.launcher != "auto":
        if request.launcher not in LAUNCHERS:
            raise LaunchError(f"--launcher {request.launcher}: unknown; choose auto, {', '.join(LAUNCHERS)}")
        return request.launcher, ""
    if uses_deepspeed(request.script_args):
        if len(processes) > 1:
            return (
                "torchrun",
                "torchrun, one command a machine, since it needs no ssh (--launcher deepspeed does)",
            )
        if deepspeed.installed(request.python):
            return "deepspeed", "deepspeed, since the script is given --deepspeed"
        return "torchrun", "torchrun, since deepspeed is not installed"
    if sum(processes) == 1:
        return "python", ""
    if backend == "hpu" and len(processes) == 1:
        if mpi.installed(environ):
            return "mpirun", "mpirun, since it gives each Gaudi's process its own cores"
        return "torchrun", "torchrun, since mpirun is not installed"
    return "torchrun", ""


def _placed(request: LaunchRequest, place: Placement | None) -> LaunchRequest:
    """Fill in what SLURM says of the machines; refuse to multiply what another launcher has multiplied."""
    if place is None or (place.world_size == 1 and place.machines == 1):
        return request
    if place.manager != "slurm":
        raise LaunchError(
            f"rlhf-hw launch: already inside {place.manager} with {place.world_size} processes; "
            "run the stage itself there (rlhf-hw sft …), or launch without it"
        )
    if place.world_size != place.machines:
        raise LaunchError(
            f"rlhf-hw launch: srun started {place.world_size} tasks on {place.machines} machines; "
            "one launch per machine is needed: srun --ntasks-per-node=1"
        )
    if request.machines is not None:
        return request
    return replace(
        request,
        machines=Machines(place.machines),
        machine_rank=place.machine_rank if request.machine_rank is None else request.machine_rank,
        master_addr=request.master_addr or place.first_host,
        master_port=request.master_port or place.port,
    )


def _backend(request: LaunchRequest, machine: Machine) -> tuple[str, str]:
    """The backend and why it is this one."""
    if request.backend == "auto":
        backend = machine.backend
        if backend == "cpu":
            return "cpu", "cpu, since no NVIDIA GPU and no Gaudi is visible"
        return (
            backend,
            f"{backend}, since {_count(machine.accelerators(backend), _DEVICE_NAMES[backend])} visible",
        )
    if request.backend not in ("cpu", *_DEVICE_NAMES):
        raise LaunchError(
            f"--device {request.backend}: unknown; choose auto, cpu, {', '.join(_DEVICE_NAMES)}"
        )
    if request.backend == "hpu" and machine.emulated:
        return "hpu", f"hpu, emulated on CPU memory ({EMULATOR_DISTRIBUTION}), since no Gaudi is visible"
    alone = request.machines is None or request.machines.count == 1  # else the devices may be elsewhere
    if alone and request.backend != "cpu" and machine.accelerators(request.backend) == 0:
        emulator = f", install {EMULATOR_DISTRIBUTION} to emulate one" if request.backend == "hpu" else ""
        raise LaunchError(
            f"--device {request.backend}: no {_DEVICE_NAMES[request.backend]} is visible on this machine; "
            f"check its driver and *_VISIBLE_DEVICES{emulator}, or use --device cpu"
        )
    return request.backend, f"{request.backend}, as asked"


def _job(
    request: LaunchRequest,
    machine: Machine,
    backend: str,
    processes: tuple[int, ...],
    launcher: str,
    environ: Mapping[str, str],
) -> Job:
    """Settle ranks and addresses."""
    if (request.module is None) == (request.script is None):
        raise LaunchError("rlhf-hw launch: give either a stage or a script")
    head = ("-m", request.module) if request.module is not None else (str(request.script),)
    several = len(processes) > 1
    hosts = request.machines.hosts if request.machines is not None else ()
    rank = request.machine_rank
    if launcher in REACH_OTHERS and several:
        if rank not in (None, 0):
            raise LaunchError(
                f"--machine_rank {rank}: {launcher} starts the processes of all machines from the first; run it there alone"
            )
        rank = 0
    if rank is None and several:
        raise LaunchError(f"--machine_rank: which of the {len(processes)} machines is this one? Give 0, 1, …")
    if rank is not None and not 0 <= rank < len(processes):
        raise LaunchError(f"--machine_rank {rank}: there are {len(processes)} machines, numbered from 0")
    address = request.master_addr
    if several and address is None:
        if not hosts:
            raise LaunchError(
                "--master_addr: give the first machine's name or address, the same on every machine"
            )
        address = hosts[0].name
    return Job(
        python=request.python,
        target=(*head, *request.script_args),
        backend=backend,
        processes=processes,
        machine_rank=rank or 0,
        master_addr=address or "127.0.0.1",
        master_port=request.master_port or (DEFAULT_PORT if several else None),
        machine=machine,
        environ=environ,
        environment={},
        hosts=hosts,
        hostfile=request.machines.hostfile if request.machines is not None else None,
    )


def _processes(request: LaunchRequest, machine: Machine, backend: str) -> tuple[int, ...]:
    """Processes of each machine: as asked, else its slots, else one per accelerator, else one."""
    machines = request.machines or Machines(1)
    here = machine.accelerators(backend)
    if request.processes is not None:
        if request.processes < 1:
            raise LaunchError(f"--processes {request.processes}: give a number from 1")
        if machines.count == 1 and backend != "cpu" and request.processes > here:
            raise LaunchError(
                f"--processes {request.processes}: only {_count(here, _DEVICE_NAMES[backend])} visible here; "
                f"give at most {here}, or --device cpu"
            )
        return (request.processes,) * machines.count
    slots = [host.slots for host in machines.hosts] or [None] * machines.count
    default = 1 if backend == "cpu" else here
    if default == 0 and None in slots:
        raise LaunchError(
            f"--processes: how many {_DEVICE_NAMES[backend]}s has each machine? This one has none"
        )
    return tuple(slot or default for slot in slots)


def _environment(job: Job) -> tuple[dict[str, str], str]:
    """Variables that the processes need and that the user has not set; and why."""
    environment = {}
    reasons = []
    machine = job.machine
    if job.backend == "hpu":
        # What --device auto means: by itself it never takes an emulated Gaudi, and without any it takes the CPU.
        environment["RLHF_HW_DEVICE"] = "hpu"
        if machine.emulated:
            environment["HPU_EMULATOR_DEVICES"] = str(max(job.processes))
    elif machine.gaudis or "RLHF_HW_DEVICE" in job.environ:
        environment["RLHF_HW_DEVICE"] = job.backend
    if job.backend == "cpu" and machine.nvidia_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        reasons.append("CUDA_VISIBLE_DEVICES is emptied to keep the processes off the GPUs")
    if "OMP_NUM_THREADS" not in job.environ:
        threads = max(1, machine.cores // job.local_processes)
        environment["OMP_NUM_THREADS"] = str(threads)
        processes = "1 process" if job.local_processes == 1 else f"{job.local_processes} processes"
        reasons.append(f"OMP_NUM_THREADS={threads}: {machine.core_reason} for {processes}")
    return environment, "; ".join(reasons)


def _count(number: int, name: str) -> str:
    return f"{number} {name}s are" if number != 1 else f"1 {name} is"
