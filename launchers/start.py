"""Show a plan, and run it: what `rlhf-hw launch` and `gaudi_spawn.py` have in common."""

from __future__ import annotations

import sys
from dataclasses import replace

from launchers.errors import LaunchError
from launchers.hosts import Machines, rank_of_this_machine
from launchers.machine import this_machine
from launchers.plan import make_plan
from launchers.records import LaunchPlan, LaunchRequest
from launchers.run import run


def start(request: LaunchRequest, *, dry_run: bool) -> int:
    """Print this machine's command and run it; of several machines whose ranks are open, print every one's.

    mpirun and deepspeed start the processes of all machines with one command. With the other launchers the commands of
    the other machines are for the user to start.

    Raises:
        LaunchError: the request cannot be met, or this machine is none of those named.
    """
    machines, rank = request.machines, request.machine_rank
    machine = this_machine()
    if machines is None or machines.count == 1 or rank is not None:
        return _print_and_run(make_plan(request, machine), dry_run)
    first = make_plan(replace(request, machine_rank=0), machine)
    if first.everywhere:
        return _print_and_run(first, dry_run)
    others = (make_plan(replace(request, machine_rank=other), machine) for other in range(1, machines.count))
    plans = [first, *others]
    rank = rank_of_this_machine(machines)
    if dry_run or rank is None:
        for other, plan in enumerate(plans):
            print(f"# on {_name(machines, other)}\n{plan.shell()}")
        if rank is None and not dry_run:
            raise LaunchError(
                "--machine_rank: this machine is none of those named, so nothing was started; run the lines "
                "above, one on each machine"
            )
        return 0
    for other, plan in enumerate(plans):
        if other != rank:
            print(f"# start it on {_name(machines, other)} too\n{plan.shell()}", file=sys.stderr)
    return _print_and_run(plans[rank], dry_run)


def _name(machines: Machines, rank: int) -> str:
    return machines.hosts[rank].name if machines.hosts else f"machine {rank}"


def _print_and_run(plan: LaunchPlan, dry_run: bool) -> int:
    """The reason goes to stderr, and so does the command, unless it is all that was asked for."""
    print(f"# {plan.reason}", file=sys.stderr)
    print(plan.shell(), file=sys.stdout if dry_run else sys.stderr, flush=True)
    return 0 if dry_run else run(plan)
