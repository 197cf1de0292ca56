"""Several processes with DeepSpeed's launcher, on one machine or more.

DeepSpeed reaches the other machines with pdsh over ssh, so the command is given once, on the first machine. Read in
deepspeed/launcher/{runner,launch,multinode_runner}.py of DeepSpeed 0.19:

- it hides devices behind CUDA_VISIBLE_DEVICES, which it sets to 0,1,… for every accelerator, CPU and HPU too;
- with --num_gpus it drops the user's own CUDA_VISIBLE_DEVICES;
- through pdsh it quotes spaces alone, and passes on no variables but PYTHON*, NCCL*, MLFLOW*, UCX* and MV2*.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping

from launchers import mpi
from launchers.errors import LaunchError
from launchers.failures import BY_STDERR, FOLDER_VARIABLE
from launchers.hosts import DEFAULT_PORT, free_port
from launchers.installed import has_package
from launchers.machine import output_of
from launchers.records import Job, LaunchPlan
from launchers.shown_commands import QUOTED, redact_argv

#: Passed on by their values, which stand in the command: nothing that may be a secret, by its name or its looks.
_SECRET = re.compile(r"(^|_)(TOKEN|\w*KEY|SECRET|PASS\w*|CREDENTIALS?)(_|$)", re.IGNORECASE)
#: Where every machine has its own, or DeepSpeed sees to it.
_OWN = ("PATH", "LD_LIBRARY_PATH", "PYTHON", "NCCL_", "CUDA_VISIBLE_DEVICES")
#: What pdsh and a shell leave alone. '%' is not among it, and the percent of an encoded word is followed by an upper-case
#: hexadecimal digit, which pdsh (%h, %n, %s, %u) does not read.
_PLAIN = "/=-,.:_~+@"


def installed(python: str) -> bool:
    """Whether the interpreter has DeepSpeed."""
    return has_package(python, "deepspeed")


def plan(job: Job) -> LaunchPlan:
    """Start the job, on all its machines, with DeepSpeed.

    Raises:
        LaunchError: DeepSpeed or pdsh is not there, the host file gives no slots, or devices are hidden by their UUIDs.
    """
    if not installed(job.python):
        raise LaunchError(
            f"--launcher deepspeed: {job.python} has no deepspeed; pip install deepspeed, or use --launcher torchrun"
        )
    several = len(job.processes) > 1
    port = job.master_port or (DEFAULT_PORT if several else free_port())
    command = [job.python, "-m", "deepspeed.launcher.runner"]
    command += _on_several(job) if several else _on_one(job)
    command += ["--no_local_rank", "--master_addr", job.master_addr, "--master_port", str(port)]
    environment = {"DS_ACCELERATOR": job.backend} if "DS_ACCELERATOR" not in job.environ else {}
    rank, *target = job.ranked_target
    command.append(rank)
    if job.backend == "cpu":
        command += ["--env", "CUDA_VISIBLE_DEVICES="]
    if several:
        command += ["--env", f"{FOLDER_VARIABLE}={BY_STDERR}"]
        for name, value in _passed_on({**job.environ, **job.environment, **environment}).items():
            command += ["--env", f"{name}={value}"]
        encoded = [urllib.parse.quote(word, safe=_PLAIN) for word in target]
        if encoded != target:
            target = [QUOTED, *encoded]
    where = f" on {len(job.processes)} machines" if several else ""
    return LaunchPlan(
        [*command, *target],
        environment,
        f"deepspeed starts {job.world_size} process{'es' * (job.world_size > 1)}{where}",
        several=True,
        everywhere=several,
    )


def _on_one(job: Job) -> list[str]:
    """Which devices: the first N, or those that the user named."""
    # A name that no file has: DeepSpeed would else read /job/hostfile where a cloud image left one.
    command = ["--hostfile", ""]
    listed = job.environ.get("CUDA_VISIBLE_DEVICES", "") if job.backend == "cuda" else ""
    if not listed:
        return [*command, "--num_gpus", str(job.world_size)]
    devices = [part.strip() for part in listed.split(",")][: job.world_size]
    if not all(device.isdigit() for device in devices):
        raise LaunchError(
            f"--launcher deepspeed: takes devices by number, and CUDA_VISIBLE_DEVICES is {listed}; use --launcher torchrun"
        )
    return [*command, "--include", f"localhost:{','.join(devices)}"]


def _on_several(job: Job) -> list[str]:
    if job.hostfile is None or any(host.slots is None for host in job.hosts):
        raise LaunchError(
            "--launcher deepspeed: on several machines give --hostfile with 'host slots=8' on every line"
        )
    if [host.slots for host in job.hosts] != list(job.processes):
        raise LaunchError(
            "--launcher deepspeed: on several machines the slots of the hostfile are the processes; leave --processes out"
        )
    if not output_of("pdsh", "-V", path=job.environ.get("PATH")):
        raise LaunchError(
            "--launcher deepspeed: no pdsh on PATH, with which it reaches other machines (apt-get install pdsh); or use "
            "--launcher torchrun, one command on every machine"
        )
    return ["--hostfile", job.hostfile]


def _passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the ranks on other machines, as `mpi.FORWARDED`, less secrets and what cannot be written plainly."""
    passed = {}
    for name in mpi.forwarded_names(environ):
        value = environ[name]
        word = f"{name}={value}"
        secret = _SECRET.search(name) or redact_argv([word]) != [word]
        if not name.startswith(_OWN) and not secret and urllib.parse.quote(value, safe=_PLAIN) == value:
            passed[name] = value
    return passed
