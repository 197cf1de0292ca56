"""docs/debugging-on-hpu.md holds what its commands really print: each `$` line of it with an example is run here.

A line of `…` alone stands for any number of lines, and `…` within one for any text.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/debugging-on-hpu.md"
EXAMPLES = sorted(path.name for path in (ROOT / "docs/examples").glob("*.py"))

pytestmark = pytest.mark.skipif(
    find_spec("habana_torch_plugin_emulator") is None, reason="the emulator is not installed"
)


def shown() -> list[tuple[str, str]]:
    """(command, output) of each `$` line of the page's console blocks that runs an example."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    commands = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    pairs = [tuple(part.split("\n", 1)) for part in commands]
    return [(command, output) for command, output in pairs if "docs/examples/" in command]


def pattern(output: str) -> str:
    """The regular expression that an output as the page shows it stands for."""
    lines = []
    for line in output.rstrip().splitlines():
        escaped = ".*".join(re.escape(part) for part in line.strip().split("…"))
        lines.append(r"(?:.*\n)*?" if line.strip() == "…" else rf"[ \t]*{escaped}[ \t]*\n")
    return "".join(lines)


@pytest.mark.parametrize(("command", "output"), shown(), ids=[command for command, _ in shown()])
def test_an_example_prints_what_the_page_shows(command: str, output: str) -> None:
    ours = ("HPU_", "PT_HPU_", "TORCH_DEVICE_BACKEND_AUTOLOAD")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    words = command.split()
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    assert words.pop(0) == "python"
    environ |= {"HPU_EMULATOR_QUIET": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    fails = "Traceback" in output
    assert (done.returncode != 0) is fails, done.stdout
    assert re.fullmatch(pattern(output), done.stdout.rstrip() + "\n"), done.stdout


def test_the_page_shows_every_example() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert EXAMPLES
    assert not [name for name in EXAMPLES if f"docs/examples/{name}" not in page]


def test_a_wrong_output_would_be_noticed() -> None:
    """The comparison itself: elisions match, everything else must be there to the letter."""
    assert re.fullmatch(pattern("a\n…\nb 1…3\n"), "a\nx\ny\nb 1.2.3\n")
    assert re.fullmatch(pattern("a\n…\nb\n"), "a\nb\n")
    assert not re.fullmatch(pattern("a\n…\nb\n"), "a\nx\nc\n")
    assert not re.fullmatch(pattern("4 distinct graphs\n"), "5 distinct graphs\n")
