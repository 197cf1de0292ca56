"""Which of several ranks failed first.

A rank that fails leaves a file in a folder that the launching process reads at the end. From another machine it cannot:
there it writes a marked line to stderr, which mpirun and pdsh bring home, and the launching process files it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

#: Names the folder; set by `launchers.run`. BY_STDERR where some ranks are on other machines.
FOLDER_VARIABLE = "RLHF_HW_RANK_FAILURES"
BY_STDERR = "stderr"
#: Begins the marked line. It starts with the record separator of ASCII, which nobody prints.
MARK = b"\x1erlhf-hw-rank-failure:"
#: Bytes of a marked line: what mpirun and a pipe carry in one piece, so that other ranks' lines do not cut into it.
LINE_BYTES = 3500
#: Lines shown of a rank that wrote no traceback.
LAST_LINES = 20
# torch prefixes a rank's lines with "[rank1]: ", and rich draws a box around them.
_TRACEBACK = re.compile(r"^.*Traceback \(most recent call last\)", re.MULTILINE)
_CHAIN = re.compile(
    r"(During handling of the above exception, another exception occurred|"
    r"The above exception was the direct cause of the following exception):\s*(\[rank\d+\]:\s*)*$"
)
# A process group says so in every rank when one of them is gone.
_ANOTHERS_END = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|remote process exit|[Cc]ollective operation timeout"
)


@dataclass(frozen=True)
class Failure:
    """The end of a rank that did not end well.

    `code` is its exit code, 128+N for signal N. `time` (seconds since 1970) is that of its last traceback's first line,
    or else of its end: the process group of a rank that has raised breaks in the others before the rank is gone.
    `told` says that it was sent a signal to end before it did.
    """

    rank: int
    host: str
    code: int
    time: float
    told: bool
    output: str

    def write(self, folder: Path) -> None:
        """Leave it for the launching process, whole or not at all."""
        target = folder / f"rank-{self.rank}.json"
        half = target.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps(asdict(self)), encoding="utf-8")
        half.replace(target)

    def line(self) -> bytes:
        """The marked line, with as much of the output as it has room for."""
        output = last_words(self.output)
        while True:
            record = json.dumps({**asdict(self), "output": output}).encode()
            line = MARK + base64.b64encode(zlib.compress(record)) + b"\n"
            if len(line) <= LINE_BYTES:
                return line
            output = output[len(output) // 8 + 1 :]

    @classmethod
    def of_line(cls, line: bytes) -> Failure:
        """What `line` wrote."""
        return cls(**json.loads(zlib.decompress(base64.b64decode(line.removeprefix(MARK).strip()))))

    @property
    def of_another(self) -> bool:
        """Whether it speaks of another rank's end: then that came first, though it may take longer to be over."""
        return _ANOTHERS_END.search(last_words(self.output)) is not None

    def message(self) -> str:
        """What to print last: which rank, how it ended, and what it said."""
        name = signal_name(self.code - 128) if self.code > 128 else None
        ended = f"killed by {name}" if name else f"exit code {self.code}"
        if name == "SIGKILL":
            ended += ", as the kernel does to a process when memory runs out"
        said = last_words(self.output)
        head = f"rank {self.rank} on {self.host} failed first: {ended}"
        return (
            f"{head}; the last it wrote to stderr:\n{said}" if said else f"{head}; it wrote nothing to stderr"
        )


def signal_name(number: int) -> str | None:
    """SIGKILL for 9; None for a number that is no signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


class MarkedLines:
    """Takes the marked lines out of a stream that is fed in pieces, and files what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = b""

    def feed(self, piece: bytes) -> bytes:
        """The stream so far without marked lines, less what was returned before; b"" (its end) gives what is held."""
        stream, shown = self.held + piece, b""
        while (begin := stream.find(MARK)) >= 0:
            end = stream.find(b"\n", begin)
            if end < 0 and piece:
                self.held = stream[begin:]
                return shown + stream[:begin]
            line = stream[begin : end if end >= 0 else None]
            shown, stream = shown + stream[:begin], stream[end + 1 :] if end >= 0 else b""
            try:
                Failure.of_line(line).write(self.folder)
            except (
                ValueError,
                TypeError,
                zlib.error,
            ):  # torn, by a machine that was cut off: shown as it came
                shown += line + b"\n"
        begun = stream.rfind(MARK[:1]) if piece else -1
        if begun >= 0 and MARK.startswith(stream[begun:]):
            self.held = stream[begun:]
            return shown + stream[:begun]
        self.held = b""
        return shown + stream


def any_failure(folder: Path) -> bool:
    """Whether some rank has failed already."""
    return any(folder.glob("rank-*.json"))


def first_failure(folder: Path) -> Failure | None:
    """The rank that failed first; None where none did, or all ended as they were told."""
    failures = [
        Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("rank-*.json")
    ]
    if all(failure.told for failure in failures):
        return None
    return min(failures, key=lambda failure: (failure.of_another, failure.time))


def has_traceback(text: str) -> bool:
    """Whether a traceback begins in the text."""
    return _TRACEBACK.search(text) is not None


def last_words(text: str) -> str:
    """The last traceback with those it came from, and all after it; without one the last LAST_LINES lines."""
    starts = [match.start() for match in _TRACEBACK.finditer(text)]
    if not starts:
        return "\n".join(text.rstrip().splitlines()[-LAST_LINES:])
    begin = starts.pop()
    while starts and _CHAIN.search(text[:begin]):
        begin = starts.pop()
    return text[begin:].rstrip()
