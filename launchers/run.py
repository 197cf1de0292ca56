"""Run a plan as a child process that this process stands in for: its signals go down, its exit code comes up.

Of several ranks the first to fail counts: its exit code is returned, and what it last wrote is printed last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from launchers import failures
from launchers.errors import LaunchError
from launchers.processes import (
    adopt_orphans,
    die_with_parent,
    end_children,
    exit_status,
    send,
    signal_group,
    wait_for,
)
from launchers.rank import LAUNCHED_BY
from launchers.records import LaunchPlan

#: Seconds that processes have to end after their launcher has: torchrun gives its workers as many.
GRACE = 30
#: … and after a rank has failed: as long as `launchers.rank` gives the others.
GRACE_AFTER_FAILURE = 5
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(plan: LaunchPlan) -> int:
    """Run the plan to its end and return its exit code, 128+N where signal N ended it (as shells do).

    SIGINT, SIGTERM and SIGHUP sent to this process are passed to the child, which may shut down in its own time.
    Must be called from the main thread: Python handles signals there. A plan of several processes takes every
    child of this process for its own.

    Raises:
        LaunchError: the command cannot be started.
    """
    if not plan.several:
        return _run(plan, {}, None)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="rlhf-hw-ranks-") as name:
        folder = Path(name)
        code = _run(plan, {failures.FOLDER_VARIABLE: name, LAUNCHED_BY: str(os.getpid())}, folder)
        failure = failures.first_failure(folder)
    if code != 0 and failure is not None:
        sys.stdout.flush()
        print(f"\n{failure.message()}", file=sys.stderr, flush=True)
        return failure.code
    return code


def _run(plan: LaunchPlan, environment: dict[str, str], folder: Path | None) -> int:
    """Start the command and wait for it; file in `folder` what its ranks on other machines say of their failures.

    A launcher of several processes gets a process group of its own, which signals go to as a whole: DeepSpeed's, for
    one, is two processes, of which the first dies of SIGTERM without a word to the second. It reads no terminal then.
    """
    child: subprocess.Popen[bytes] | None = None
    received: list[int] = []
    asked: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            received.append(number)
        elif plan.end_signal is not None and not asked:
            asked.append(number)
            send(child.pid, plan.end_signal)
            signal.alarm(GRACE)
        elif plan.several:
            signal_group(child.pid, signal.SIGTERM if number == signal.SIGALRM else number)
        elif not (number == signal.SIGINT and _terminal_interrupts_us()):
            send(child.pid, number)

    def prepare() -> None:
        if plan.several:
            os.setpgid(0, 0)
        die_with_parent(plan.end_signal or signal.SIGTERM)

    previous = {
        number: signal.signal(number, forward)
        for number in (*FORWARDED, *([signal.SIGALRM] if plan.end_signal is not None else []))
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup's choice
    }
    try:
        try:
            child = subprocess.Popen(
                plan.command,
                env={**os.environ, **plan.environment, **environment},
                stdin=subprocess.DEVNULL if plan.several else None,
                stderr=subprocess.PIPE if plan.everywhere else None,
                preexec_fn=prepare,
            )
        except OSError as error:
            raise LaunchError(f"{plan.command[0]}: cannot be started ({error.strerror})") from error
        for number in received:  # arrived between the handlers' installation and the child's start
            forward(number, None)
        reader = None
        if child.stderr is not None and folder is not None:
            reader = threading.Thread(target=_pass_on, args=(child.stderr.fileno(), folder), daemon=True)
            reader.start()
        code = exit_status(wait_for(child) if plan.several else child.wait())
        if reader is not None:
            reader.join(GRACE_AFTER_FAILURE)
        if (
            plan.several and code > 128
        ):  # killed; what it started itself may be waiting for it (DeepSpeed's is)
            signal_group(child.pid, signal.SIGTERM)
        if folder is not None and code != 0:  # a signal that comes meanwhile finds us at the end already
            end_children(GRACE_AFTER_FAILURE if failures.any_failure(folder) else GRACE)
        return code
    finally:
        if asked:
            signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pass_on(stream: int, folder: Path) -> None:
    """Copy a launcher's stderr to ours, less the marked lines. Where ours is closed it is read on: a full pipe would
    stop the training."""
    lines = failures.MarkedLines(folder)
    while True:
        piece = os.read(stream, 65536)
        shown = lines.feed(piece)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.buffer.write(shown)
            sys.stderr.flush()
        if not piece:
            return


def _terminal_interrupts_us() -> bool:
    """Whether we are a terminal's foreground job, so that its Ctrl-C has reached the child already.

    A second SIGINT would interrupt the child's clean-up and orphan what it started.
    """
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # no terminal, or stdin closed or replaced
        return False
