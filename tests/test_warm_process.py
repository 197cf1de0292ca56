"""The warm process that other tests run programs in: what is run there must find itself in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm_process import WarmProcess, warm_process

PROGRAM = """
import json, os, sys
from pathlib import Path
import colorsys
print(json.dumps([sys.argv[1:], os.environ.get("GIVEN"), colorsys.seen, sys.path[0], __name__, sys.stdin.read()]))
colorsys.seen += 1
print("to stderr", file=sys.stderr)
if sys.argv[1:] == ["kill"]:
    os.kill(os.getpid(), 9)
if sys.argv[1:] == ["raise"]:
    raise ValueError("out of data")
if sys.argv[1:] == ["hang"]:
    import time
    time.sleep(60)
sys.exit(int(sys.argv[1]) if sys.argv[1:] else None)
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    with warm_process("import colorsys; colorsys.seen = 0; print('no answer')", dict(os.environ)) as process:
        yield process


@pytest.mark.parametrize(
    ("argument", "status", "said"),
    [("7", 7, ""), ("0", 0, ""), ("kill", 128 + 9, ""), ("raise", 1, "ValueError: out of data")],
)
def test_a_program_is_as_in_a_process_of_its_own(
    warm: WarmProcess, tmp_path: Path, argument: str, status: int, said: str
) -> None:
    program, output = tmp_path / "program.py", tmp_path / "output"
    program.write_text(PROGRAM)
    environment = {**os.environ, "GIVEN": argument, "PYTHONUNBUFFERED": "1"}
    assert warm.run(program, argument, environment=environment, output=output, timeout=60) == status
    text = output.read_text()
    if argument != "kill":  # what was not flushed is lost there, as ever
        assert f'[["{argument}"], "{argument}", 0, "{tmp_path}", "__main__", ""]' in text
        assert "to stderr" in text
    assert said in text
    assert "GIVEN" not in os.environ


def test_a_program_reads_what_is_typed_and_runs_where_it_is_told_to(
    warm: WarmProcess, tmp_path: Path
) -> None:
    program, output, typed = tmp_path / "program.py", tmp_path / "output", tmp_path / "typed"
    program.write_text("import os; print(os.getcwd(), input(), input())")
    typed.write_text("first\nsecond\n")
    place = tmp_path / "place"
    place.mkdir()
    environment = dict(os.environ)
    ended = [
        warm.run(program, environment=environment, output=output, timeout=60, directory=place, typed=file)
        for file in (typed, None)
    ]
    assert ended == [0, 1]  # without it there is nothing to read
    assert "EOFError" in output.read_text()
    warm.run(program, environment=environment, output=output, timeout=60, directory=place, typed=typed)
    assert output.read_text() == f"{place} first second\n"
    assert Path.cwd() != place


def test_a_program_that_does_not_end_is_ended(warm: WarmProcess, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with pytest.raises(TimeoutError, match="to stderr"):
        warm.run(program, "hang", environment=dict(os.environ), output=tmp_path / "output", timeout=1)
    status = warm.run(program, environment=dict(os.environ), output=tmp_path / "output", timeout=60)
    assert status == 0
