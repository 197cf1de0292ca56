"""One process on one machine: plain Python."""

from __future__ import annotations

from launchers.errors import LaunchError
from launchers.records import Job, LaunchPlan


def plan(job: Job) -> LaunchPlan:
    """Run the target in one Python process.

    Raises:
        LaunchError: the job has several processes.
    """
    if job.world_size > 1:
        raise LaunchError(
            f"--launcher python: starts one process, {job.world_size} are asked for; use --launcher torchrun"
        )
    return LaunchPlan([job.python, *job.target], reason="one process needs no launcher")
