"""Processes that must not outlive the one that started them. Linux's kernel sees to it; elsewhere only signals do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(number: int) -> None:
    """Have the kernel send this process the signal when its parent ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def follow(process: int, then: Callable[[], None]) -> None:
    """Have `then` called, in a thread of its own, when another process ends, which need not be our parent."""
    handle = None
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:  # it has ended already
        pass
    except (AttributeError, OSError):  # no Linux, or one before 5.3
        return

    def wait() -> None:
        if handle is not None:
            select.select([handle], [], [])
        then()

    threading.Thread(target=wait, daemon=True).start()


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that `reap` sees it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def exit_status(returncode: int) -> int:
    """Popen's return code as a shell counts: 128+N where signal N ended the process."""
    return returncode if returncode >= 0 else 128 - returncode


def send(process: int, number: int) -> None:
    """Send a signal to a process, which may be gone. (`Popen.send_signal` would take its exit code, if it is.)"""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, which may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def children() -> list[int]:
    """Processes whose parent this one is, adopted ones too; none where /proc does not say."""
    found = []
    for thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in thread.read_text(encoding="ascii").split()]
    return found


def wait_for(child: subprocess.Popen[bytes]) -> int:
    """The child's return code. Adopted orphans that end meanwhile are reaped: DeepSpeed waits 30 s for such a zombie.

    Takes the exit codes of all children: only for a process whose sole business they are.
    """
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode


def reap(seconds: float) -> bool:
    """Wait up to `seconds` for every child, adopted ones too; whether all have ended.

    Takes the exit codes of all children: only for a process whose sole business they are.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if ended == 0:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def end_children(seconds: float) -> None:
    """Give every child, and the orphans it leaves, `seconds` to end; then kill them."""
    while not reap(seconds):
        left = children()
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if not left:
            return
