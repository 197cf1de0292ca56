"""The commands of `rlhf-hw`, one module each.

OpenMP threads that wait are told to sleep, not to spin: that must be said before torch is imported. On a quiet machine
the difference is in the noise; where other processes want the cores too, spinning threads keep the ones they wait for
from running (measured on two cores with two neighbours: a PPO update took 95 s in place of 14 s).
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
