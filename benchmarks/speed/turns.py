"""The conversation between the program that measures and one side: a line of JSON a turn. Needs no package.

A side does one turn of work (an update of PPO, an epoch of SFT) each time it is asked, and nothing in between: so the
sides can take turns on a machine whose speed changes from minute to minute.

A side of several processes speaks through its first one: see team.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Clock:
    """What time is spent on, from the making of it: seconds.

    cpu: of all threads. wall. delayed: the main thread could have run and no core was free. waiting: it had nothing to
    do, because another process, the network or the disk was awaited; None of it where the system does not tell.
    """

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        schedule = Path("/proc/thread-self/schedstat")
        delayed = int(schedule.read_text().split()[1]) / 1e9 if schedule.exists() else 0.0
        return time.process_time(), time.perf_counter(), time.thread_time(), delayed

    def read(self) -> dict[str, float]:
        cpu, wall, main, delayed = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {"cpu": cpu, "wall": wall, "delayed": delayed, "waiting": max(0.0, wall - main - delayed)}


class Turns:
    """This side's end of the conversation. Whatever else is printed goes to stderr.

    `team`: the processes that are this side together; None: it is this one.
    """

    def __init__(self, team: Any = None) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._team = team
        self._clock: Clock | None = None
        #: what this turn did, for the other side to be compared with; anything that JSON holds
        self.facts: dict[str, Any] = {}

    def next(self) -> None:
        """The turn is over (if one had begun): report it, and wait until the next one is asked for.

        Ends the process when no more are wanted.
        """
        if self._clock is not None:
            self.facts |= self._clock.read()
        if self._team is None:
            word = self._say(self.facts)
        else:
            together = self._team.together(self.facts)
            word = self._team.told(self._say(together) if self._team.speaks else "")
        self.facts = {}
        if word != "go":
            os._exit(0)  # from within a trainer's loop: nothing is to be saved, and nothing to be said
        self._clock = Clock()

    def _say(self, facts: dict[str, Any]) -> str:
        """Report; returns what is asked for next."""
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()
        return sys.stdin.readline().strip()

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
