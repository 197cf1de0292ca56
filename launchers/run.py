"""Run a plan as a child process that this process stands in for: its signals go down, its exit code comes up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from launchers.errors import LaunchError
from launchers.records import LaunchPlan


def run(plan: LaunchPlan) -> int:
    """Run the plan to its end and return its exit code, 128+N where signal N ended it (as shells do).

    SIGINT and SIGTERM sent to this process are passed to the child, which may shut down in its own time.
    Must be called from the main thread: Python handles signals there.

    Raises:
        LaunchError: the command cannot be started.
    """
    child: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            received.append(number)
        elif not (number == signal.SIGINT and _terminal_interrupts_us()):
            child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            child = subprocess.Popen(plan.command, env={**os.environ, **plan.environment})
        except OSError as error:
            raise LaunchError(f"{plan.command[0]}: cannot be started ({error.strerror})") from error
        for number in received:  # arrived between the handlers' installation and the child's start
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _terminal_interrupts_us() -> bool:
    """Whether we are a terminal's foreground job, so that its Ctrl-C has reached the child already.

    A second SIGINT would interrupt the child's clean-up (torchrun's, say) and orphan its workers.
    """
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal, or stdin closed or replaced
        return False
