"""Speed against TRL: the same models and data on both sides, one thread, CPU seconds, turn and turn about.

    make bench                       # installs the peers into build/peers, then runs this
    python benchmarks/speed          # all rows; --only ppo-separate-bf16 for one
    python benchmarks/speed --growth # how the cost grows with model, batch, length and processes

Every row has two sides, each in a process of its own. They take turns (an update of PPO, an epoch of SFT or of the reward
model): the first turn of each is not counted, the result is the ratio of the medians of the others. The program ends with
status 1 where the sides did not do the same work: the same tokens and optimizer steps in every turn, and equal losses of
three steps on one batch in fp32.

Writes speed.json (a list of rows) and speed.md (table, versions, phases) to --results as soon as a group of rows is
finished. --only keeps the other rows that are there if they are of the same day, machine, versions and size; else it
replaces them. --growth writes growth.json, growth.md and growth.png.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from comparison import compare
from growth import grow
from options import parse


def main() -> int:
    """Measure what is asked for; 0 if all sides did the same work."""
    arguments = parse(__doc__)
    torch.set_num_threads(1)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # the sides are stopped on the way out
    try:
        return compare(arguments) if arguments.plan is None else grow(arguments)
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {arguments.results}", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
