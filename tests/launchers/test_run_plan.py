"""The child's end is our end."""

import sys

import pytest

from launchers import LaunchError, LaunchPlan, run


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
        ("import os, sys; sys.exit(os.environ['GIVEN'] != 'a b')", 0),
    ],
)
def test_exit_code_is_the_childs(program, code):
    assert run(LaunchPlan([sys.executable, "-c", program], {"GIVEN": "a b"})) == code


def test_a_command_that_is_not_there_is_one_line():
    with pytest.raises(LaunchError, match="no-such-python: cannot be started"):
        run(LaunchPlan(["no-such-python"]))
