"""A journal keeps what it holds, at whatever point a process was killed."""

from pathlib import Path

import pytest

from rlhf_hw.evaluation.journal import Journal

SETTINGS = {"model": "m"}


def opened(output: Path) -> Journal:
    return Journal(str(output), SETTINGS, overwrite=False, flag="--output_path")


def test_a_torn_line_goes_and_the_lines_before_it_are_never_off_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.json"
    with opened(output) as journal:
        journal.add(0, {"answer": "a"})
        journal.add(1, {"answer": "b"})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"row": 2, "ans')

    written: list[object] = []
    write = Journal._write
    monkeypatch.setattr(Journal, "_write", lambda self, line: (written.append(line), write(self, line)))
    with opened(output) as journal:
        assert journal.results == {0: {"answer": "a"}, 1: {"answer": "b"}}
        assert journal.path.read_bytes() == whole
        assert not written  # nothing had to be written again
        journal.add(2, {"answer": "c"})
    with opened(output) as journal:
        assert list(journal.results) == [0, 1, 2]
