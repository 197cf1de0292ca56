"""How processes start: what this machine has, and the command and environment that use it.

Imports neither torch nor rlhf_hw: a launcher must be there in milliseconds.
"""

from launchers.errors import LaunchError
from launchers.hosts import Host, Machines, Placement, parse_hostfile, placement
from launchers.machine import Machine, this_machine
from launchers.plan import LAUNCHERS, make_plan
from launchers.records import Job, LaunchPlan, LaunchRequest
from launchers.run import run

__all__ = [
    "LAUNCHERS",
    "Host",
    "Job",
    "LaunchError",
    "LaunchPlan",
    "LaunchRequest",
    "Machine",
    "Machines",
    "Placement",
    "make_plan",
    "parse_hostfile",
    "placement",
    "run",
    "this_machine",
]
