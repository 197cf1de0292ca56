"""Real launches for the tests here: scripts, the commands that start them, and who is still alive afterwards."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GAUDI_SPAWN = [sys.executable, str(ROOT / "gaudi_spawn.py")]
LAUNCH = [sys.executable, "-m", "rlhf_hw.cli.launch"]

#: Meets the other ranks and says so in one write, which no other rank's can cut in two.
ALL_REDUCE = """
import os, socket, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
line = f"rank {dist.get_rank()} of {dist.get_world_size()} sums to {total.item()} on {socket.gethostname()}, got {sys.argv[1:]}"
os.write(1, f"{line}{os.linesep}".encode())
if os.environ.get("CRASH") == os.environ["RANK"]:
    raise RuntimeError("the first to fail")
if "CRASH" in os.environ:
    dist.all_reduce(total)  # never ends well: a rank is gone
dist.destroy_process_group()
"""


def require_mpirun() -> None:
    """Open MPI is part of what is tested; a machine that cannot have it says so with RLHF_HW_NO_MPI=1."""
    if os.environ.get("RLHF_HW_NO_MPI") == "1":
        pytest.skip("RLHF_HW_NO_MPI=1")
    if shutil.which("mpirun") is None:
        pytest.fail("no mpirun on PATH: make system (apt-get install openmpi-bin), or set RLHF_HW_NO_MPI=1")


def environment(**changes: str) -> dict[str, str]:
    """Ours, with one thread a process; torchrun's traces in it would make a rank of every child."""
    ours = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    path = os.pathsep.join(filter(None, [str(ROOT), ours.get("PYTHONPATH", "")]))
    return {**ours, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changes}


def run(*words: str, timeout: float = 120, **changes: str) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(
        words,
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def script(folder: Path, text: str, name: str = "train.py") -> str:
    """A script's path."""
    path = folder / name
    path.write_text(text)
    return str(path)


def alive(mark: str) -> list[str]:
    """Command lines of the living processes that have the mark among their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if mark in words and int(process.name) != os.getpid():
            found.append(" ".join(words))
    return found


def assert_all_end(mark: str, seconds: float = 15) -> None:
    """No process with the mark is left after some seconds."""
    deadline = time.monotonic() + seconds
    while left := alive(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
