"""The commands of `rlhf-hw`, one module each.

OpenMP threads that wait are told to sleep, not to spin: that must be said before torch is imported. On a quiet machine
the difference is in the noise; where other processes want the cores too, spinning threads keep the ones they wait for
from running (measured on two cores with two neighbours: a PPO update took 95 s in place of 14 s).

Two more things have to be settled before torch is imported: which rank this is, where mpirun started it, and the mode
of the Gaudi libraries.
"""

import os
import sys

from launchers.errors import LaunchError
from launchers.ompi import set_rank_variables
from rlhf_hw.hpu_environment import set_lazy_mode

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
try:
    set_rank_variables()
except LaunchError as error:
    raise SystemExit(f"rlhf-hw: error: {error}") from error
set_lazy_mode(sys.argv[1:], os.environ)
