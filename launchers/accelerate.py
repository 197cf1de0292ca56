"""Several processes with `accelerate launch`."""

from __future__ import annotations

from collections.abc import Mapping

from launchers.errors import LaunchError
from launchers.hosts import free_port
from launchers.records import Job, LaunchPlan


def plan(job: Job) -> LaunchPlan:
    """Start this machine's share of the job with accelerate.

    Every option that accelerate would otherwise take from a user's default configuration is given.
    `accelerate launch --cpu --num_processes=N` starts one process whatever N is (its `simple_launcher`), so on
    a CPU the several processes come from `--multi_gpu`, with ACCELERATE_USE_CPU to keep them there.

    Raises:
        LaunchError: machines differ in their number of processes, which accelerate cannot express.
    """
    machines = len(job.processes)
    if len(set(job.processes)) > 1:
        raise LaunchError(
            f"--launcher accelerate: needs as many processes on every machine, found {list(job.processes)}; "
            "use --launcher torchrun"
        )
    command = [job.python, "-m", "accelerate.commands.launch"]
    if job.world_size > 1:
        command.append("--multi_gpu")
    elif job.backend == "cpu":
        command.append("--cpu")
    command += [
        f"--num_processes={job.world_size}",
        f"--num_machines={machines}",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    if machines > 1:
        command += [f"--machine_rank={job.machine_rank}", f"--main_process_ip={job.master_addr}"]
    if job.world_size > 1:
        port = job.master_port if job.master_port is not None else free_port()
        command.append(f"--main_process_port={port}")
    environment = {"ACCELERATE_USE_CPU": "true"} if job.backend == "cpu" else {}
    several = job.world_size > 1
    target = job.ranked_target if several else job.target
    reason = f"accelerate starts {job.world_size} process{'es' * several}"
    return LaunchPlan([*command, *target], environment, reason, several=several)


def started_alone(environ: Mapping[str, str]) -> str | None:
    """A line for the user where accelerate was asked for several processes on a CPU and started one, else None.

    Several processes leave MASTER_PORT in the environment; without RANK nobody told this one which it is.
    """
    on_cpu = environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if not on_cpu or "MASTER_PORT" not in environ or "RANK" in environ:
        return None
    return (
        "accelerate launch --cpu starts one process whatever --num_processes says; for several on a CPU use torchrun, "
        "or ACCELERATE_USE_CPU=true with --multi_gpu"
    )
