"""Programs run in forks of a process that has imported what they all need: seconds less for each.

As `python PROGRAM ARGUMENT…` otherwise: each has its own process, arguments, environment, output, exit status and time
limit. What a program does while it is imported anew, as choosing a mode before torch is loaded, it cannot do here: the
warm process is started with the environment that decides it.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn


class WarmProcess:
    """The side of the tests. `preload` are Python statements that open no device and start no thread."""

    def __init__(self, preload: str, environment: Mapping[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, preload],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        program: Path,
        *arguments: str,
        environment: Mapping[str, str],
        output: Path,
        timeout: float,
        directory: Path | None = None,
        typed: Path | None = None,
    ) -> int:
        """Exit status of a program, 128+N where signal N ended it; `output` gets what it prints.

        It runs in `directory`, and reads the file `typed` as standard input; without one there is nothing to read.

        Raises:
            TimeoutError: it took longer than `timeout` seconds, and was killed.
        """
        request = {
            "words": [str(program), *arguments],
            "environment": dict(environment),
            "output": str(output),
            "timeout": timeout,
            "directory": str(directory or Path.cwd()),
            "typed": str(typed or os.devnull),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the warm process ended with {self._server.wait()}")
        status: int | None = json.loads(answer)
        if status is None:
            raise TimeoutError(f"{program} took longer than {timeout} s:\n{output.read_text()[-2000:]}")
        return status

    def close(self) -> None:
        """End it."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=120)


@contextlib.contextmanager
def warm_process(preload: str, environment: Mapping[str, str]) -> Iterator[WarmProcess]:
    process = WarmProcess(preload, environment)
    try:
        yield process
    finally:
        process.close()


def serve(preload: str) -> None:
    """Fork for each request on standard input, and answer with the exit status when the program has ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    sys.path[0] = str(Path(__file__).parents[1])  # tests/backends is not the package `backends`
    exec(preload, {})
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            os.chdir(request["directory"])
            become(request["words"], request["environment"], request["output"], request["typed"])
        answers.write(json.dumps(wait(process, request["timeout"])) + "\n")
        answers.flush()


def wait(process: int, timeout: float) -> int | None:
    """A child's exit status; None where it had to be killed."""
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() > deadline:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.01)


def become(words: Sequence[str], environment: Mapping[str, str], output: str, typed: str) -> NoReturn:
    """In a fork: be `python words…`."""
    os.setsid()
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    given = os.open(typed, os.O_RDONLY)
    for number, source in ((0, given), (1, file), (2, file)):
        os.dup2(source, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = words
    sys.path[0] = str(Path(words[0]).parent)
    status = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # exit handlers are the warm process's


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # taking apart all that was imported takes seconds
