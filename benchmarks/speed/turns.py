"""The conversation between the program that measures and one side: a line of JSON a turn. Needs no package.

A side does one turn of work (an update of PPO, an epoch of SFT) each time it is asked, and nothing in between: so the
sides can take turns on a machine whose speed changes from minute to minute.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


class Turns:
    """This side's end of the conversation. Whatever else is printed goes to stderr."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started: tuple[float, float] | None = None
        #: what this turn did, for the other side to be compared with; anything that JSON holds
        self.facts: dict[str, Any] = {}

    def next(self) -> None:
        """The turn is over (if one had begun): report it, and wait until the next one is asked for.

        Ends the process when no more are wanted.
        """
        if self._started is not None:
            cpu, wall = self._started
            self.facts |= {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        self._answers.write(json.dumps(self.facts) + "\n")
        self._answers.flush()
        self.facts = {}
        if sys.stdin.readline().strip() != "go":
            os._exit(0)  # from within a trainer's loop: nothing is to be saved, and nothing to be said
        self._started = time.process_time(), time.perf_counter()

    def add(self, name: str, amount: float) -> None:
        """Add to a number among the facts."""
        self.facts[name] = self.facts.get(name, 0) + amount


class Phases:
    """CPU seconds by phase: each lasts until the next one begins."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self._phase: tuple[str, float] | None = None

    def begin(self, name: str | None) -> None:
        """`None`: what follows belongs to no phase."""
        now = time.process_time()
        if self._phase is not None:
            phases = self.turns.facts.setdefault("phases", {})
            phases[self._phase[0]] = phases.get(self._phase[0], 0.0) + now - self._phase[1]
        self._phase = None if name is None else (name, now)
