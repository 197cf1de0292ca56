"""Several processes with torchrun (`python -m torch.distributed.run`), on one machine or more.

Several machines meet at a static rendezvous, in which machine R holds the ranks of machine R: the first
machine logs and writes the checkpoints. torchrun's c10d rendezvous numbers machines by sorting their addresses
instead (`sorted(state.participants)` in torch/distributed/elastic/rendezvous/dynamic_rendezvous.py), so rank 0
may land on any of them.
"""

from __future__ import annotations

from launchers.records import Job, LaunchPlan


def plan(job: Job) -> LaunchPlan:
    """Start this machine's share of the job with torchrun."""
    machines = len(job.processes)
    command = [job.python, "-m", "torch.distributed.run"]
    if machines == 1 and job.master_port is None:
        # Without --local_addr the workers would look up the host name, which many containers cannot resolve.
        command += ["--standalone", "--local_addr=127.0.0.1"]
    command += [f"--nnodes={machines}", f"--nproc_per_node={job.local_processes}"]
    if machines > 1:
        command.append(f"--node_rank={job.machine_rank}")
    if job.master_port is not None:
        command += [f"--master_addr={job.master_addr}", f"--master_port={job.master_port}"]
    reason = f"torchrun starts {job.world_size} process{'es' * (job.world_size > 1)}"
    return LaunchPlan([*command, *job.ranked_target], reason=reason, several=True)
