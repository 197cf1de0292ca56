"""One rank: `python launchers/rank.py [--env NAME=VALUE] [--quoted] SCRIPT.py …` or `… -m MODULE …` under any launcher.

A small process beside each training process. It gives the process its RANK where mpirun named it otherwise, passes
signals on, remembers what the process last wrote to stderr, and says so when it fails. When it ends, whatever ended it,
the training process ends too; once another rank has failed, one that is told to end has GRACE seconds to do so, and one
whose launcher was killed GRACE_ALONE.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

if __package__ in (None, ""):  # run by its path: the target's interpreter need not know this package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launchers.errors import LaunchError
from launchers.failures import BY_STDERR, FOLDER_VARIABLE, Failure, any_failure, has_traceback
from launchers.ompi import set_rank_variables
from launchers.processes import die_with_parent, exit_status, follow, signal_group

#: Number of the process that a user started: it may be killed, and so may everyone between it and us.
LAUNCHED_BY = "RLHF_HW_LAUNCHED_BY"
#: Seconds between SIGTERM and SIGKILL for a rank that outlives another's failure (it may hang in a collective).
GRACE = 5
#: … and for one whose launcher is gone, which nobody else would end: torchrun gives its workers as many.
GRACE_ALONE = 30
#: Seconds after a process's end in which what it wrote or brought about must have arrived (its children may hold a pipe).
DRAIN = 1.0
#: Seconds before the end in which a traceback is taken for its cause; an older one was logged, and lived through.
RECENT = 60
#: Characters kept of what a process wrote.
KEPT = 64 * 1024
#: "End in your own time": the process gets SIGTERM. mpirun passes it on, and a second after SIGTERM it sends SIGKILL.
END_SIGNAL = signal.SIGUSR2
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, END_SIGNAL)
FORWARDED = (*ENDING, signal.SIGUSR1)


class Rank:
    """A training process and what is known of it."""

    def __init__(self, command: Sequence[str]) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        self.folder = Path(folder) if folder and os.path.isdir(folder) else None
        self.told: float | None = None
        self.failed: float | None = None
        self.output: deque[str] = deque()
        self.kept = 0
        ours, theirs = _stderr_pair()
        self.child = subprocess.Popen(command, stderr=theirs, start_new_session=True, preexec_fn=_prepare)
        os.close(theirs)
        self.reader = threading.Thread(target=self._pass_on, args=(ours,), daemon=True)
        self.reader.start()

    def wait(self) -> int:
        """Wait for its end; its exit code, 128+N for signal N."""
        code = exit_status(self.child.wait())
        signal.alarm(0)
        self.reader.join(DRAIN)
        if code != 0:
            signal_group(self.child.pid, signal.SIGKILL)  # data loaders' workers
            self._report(code)
        return code

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on."""
        if number in ENDING and self.told is None:
            self.told = time.time()
            if self.folder is not None and any_failure(self.folder):
                signal.alarm(GRACE)
        self.child.send_signal(signal.SIGTERM if number == END_SIGNAL else number)

    def kill(self, _number: int, _frame: FrameType | None) -> None:
        """End it without asking."""
        signal_group(self.child.pid, signal.SIGKILL)

    def left_alone(self) -> None:
        """Whoever started us is gone: tell the process to end, and after a while end it. In a thread of its own."""
        time.sleep(DRAIN)  # in which we are mostly told, by the kernel or by a launcher on its way out
        if self.told is None:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_ALONE)
        signal_group(self.child.pid, signal.SIGKILL)

    def _report(self, code: int) -> None:
        ended = time.time()
        if self.told is not None and (self.failed is None or self.failed > self.told):
            return  # it ended because it was told to
        raised = self.failed is not None and ended - self.failed < RECENT
        failure = Failure(
            rank=int(os.environ.get("RANK", "0")),
            host=socket.gethostname(),
            code=code,
            time=self.failed if raised and self.failed is not None else ended,
            told=self.told is not None,
            output="".join(self.output),
        )
        if self.folder is not None:
            failure.write(self.folder)
        elif os.environ.get(FOLDER_VARIABLE) == BY_STDERR:
            _write_all(failure.line())
            time.sleep(DRAIN)  # our end is the others', and their launcher's on the way of this line

    def _pass_on(self, ours: int) -> None:
        """Copy the process's stderr to our own, and keep the end of it."""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # a terminal's end (EIO)
                return
            if not chunk:
                return
            text = chunk.decode(errors="replace")
            if has_traceback(text):
                self.failed = time.time()
            self.output.append(text)
            self.kept += len(text)
            while self.kept - len(self.output[0]) > KEPT:
                self.kept -= len(self.output.popleft())
            _write_all(chunk)


def _prepare() -> None:
    """In the process-to-be: our end is its end, and the signals that we hold back reach it."""
    die_with_parent(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _write_all(chunk: bytes) -> None:
    while chunk:
        try:
            chunk = chunk[os.write(sys.stderr.fileno(), chunk) :]
        except OSError:  # nobody reads any more; the training goes on
            return


def _stderr_pair() -> tuple[int, int]:
    """(our end, the process's end): a terminal where our stderr is one, so that it shows its progress as there."""
    if not sys.stderr.isatty():
        return os.pipe()
    import fcntl
    import pty
    import termios
    import tty

    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # our own terminal turns \n into \r\n
    size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    return ours, theirs


def command_of(arguments: Sequence[str]) -> list[str]:
    """The training process's command; `--env` goes into our environment, which it inherits.

    Raises:
        LaunchError: there is no script or module, or an option is unknown.
    """
    words = list(arguments)
    while words and words[0] in ("--env", "--quoted"):
        if words.pop(0) == "--quoted":
            words = [urllib.parse.unquote(word) for word in words]
            continue
        name, separator, value = words.pop(0).partition("=") if words else ("", "", "")
        if not separator:
            raise LaunchError("rank.py --env: give NAME=VALUE")
        os.environ[name] = value
    if not words or (words[0] == "-m" and len(words) < 2) or (words[0].startswith("-") and words[0] != "-m"):
        raise LaunchError(
            f"rank.py: give SCRIPT.py … or -m MODULE …, found {words[0] if words else 'nothing'}"
        )
    return [sys.executable, "-u", *words]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rank; its exit code, or 2 where it cannot be started."""
    parent = os.getppid()
    die_with_parent(signal.SIGTERM)
    try:
        command = command_of(sys.argv[1:] if arguments is None else arguments)
        set_rank_variables()
        if "LOCAL_SIZE" in os.environ:  # DeepSpeed's name for it
            os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["LOCAL_SIZE"])
    except LaunchError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until there is a process to pass them on to
    rank = Rank(command)
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice
            signal.signal(number, rank.forward)
    signal.signal(signal.SIGALRM, rank.kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    for process in {parent, int(os.environ.get(LAUNCHED_BY, parent))}:
        follow(process, rank.left_alone)
    return rank.wait()


if __name__ == "__main__":
    sys.exit(main())
