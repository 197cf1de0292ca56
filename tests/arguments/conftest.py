"""Fixtures of the command lines."""

from collections.abc import Callable

import pytest


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Parse what must be refused; gives the one line."""

    def parse(parser: Callable[[list[str]], object], *argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            parser(list(argv))
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.endswith("see --help\n")
        return captured.err

    return parse
