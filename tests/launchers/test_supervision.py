"""Several ranks live and die together, and the first to fail has the last word; with every launcher."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from interrupts import listen_to_interrupts
from launched import ALL_REDUCE, LAUNCH, ROOT, alive, assert_all_end, environment, require_mpirun, run, script

from launchers.failures import MARK, Failure, MarkedLines, any_failure, first_failure, last_words
from launchers.rank import GRACE

RANK = str(ROOT / "launchers/rank.py")
# Says which rank it is and waits; told to end, it saves first, which takes longer than mpirun waits after SIGTERM.
SAVES = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(2)
    open(os.path.join(sys.argv[1], "saved-" + os.environ["RANK"]), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
os.write(1, b"ready\\n")
time.sleep(100)
"""
# Rank 1 ends as FATE says; rank 0 hangs and will not hear of SIGTERM.
HANGS = """
import os, signal, subprocess, sys, time
if os.environ["RANK"] == "1":
    time.sleep(1)  # until the other has its handler
    open(sys.argv[1] + "-failed", "w").close()
    fate = os.environ["FATE"]
    if fate == "raise":
        raise ValueError("out of data")
    if fate == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(fate))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", *sys.argv[1:]])  # a data loader's worker
time.sleep(100)
"""
# Will not hear of SIGTERM, as a process that hangs in a collective does not.
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"ready\\n")
time.sleep(100)
"""
LAUNCHERS = ["torchrun", "mpirun", "deepspeed"]
FATES = {
    "raise": (1, "rank 1 on {host} failed first: exit code 1; the last it wrote to stderr:\nTraceback"),
    "kill": (128 + 9, "rank 1 on {host} failed first: killed by SIGKILL"),
    "7": (7, "rank 1 on {host} failed first: exit code 7; it wrote nothing to stderr"),
}


def require(launcher: str) -> None:
    if launcher == "mpirun":
        require_mpirun()
    if launcher == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")


@pytest.fixture(params=LAUNCHERS)
def launcher(request):
    require(request.param)
    return request.param


def two(launcher: str, *words: str) -> list[str]:
    return [*LAUNCH, "--launcher", launcher, "--processes", "2", "--device", "cpu", *words]


def ends_badly(folder: Path, launcher: str, fate: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A launch of HANGS, and the seconds from its failure to its end."""
    folder.mkdir()
    done = run(*two(launcher, script(folder, HANGS), str(folder / "mark")), FATE=fate)
    ended = time.time()
    return done, ended - (folder / "mark-failed").stat().st_mtime


@pytest.fixture(scope="module")
def bad_ends(tmp_path_factory):
    """(launcher, fate) → its folder and what `ends_badly` will return. They mostly wait: three run at a time."""
    folder = tmp_path_factory.mktemp("bad_ends")
    with ThreadPoolExecutor(3) as pool:
        yield {
            (launcher, fate): (
                folder / f"{launcher}-{fate}",
                pool.submit(ends_badly, folder / f"{launcher}-{fate}", launcher, fate),
            )
            for fate in FATES
            for launcher in LAUNCHERS
        }


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
def test_a_rank_that_ends_badly_ends_all_within_seconds_and_is_named_last(bad_ends, launcher, fate):
    folder, ended = bad_ends[launcher, fate]
    done, seconds = ended.result()
    assert_all_end(str(folder / "mark"), seconds=5)
    assert seconds < GRACE + 40  # a busy machine; left alone they would hang for good
    code, said = FATES[fate]
    assert done.returncode == code, done.stderr
    head, _, tail = done.stderr.rpartition("\n\n")
    assert tail.startswith(said.format(host=os.uname().nodename)), head + tail
    if fate == "raise":
        assert tail.rstrip().endswith("ValueError: out of data")


@pytest.mark.slow
def test_the_rank_that_raised_is_named_and_not_the_one_that_lost_its_peer(tmp_path, launcher):
    mark = str(tmp_path / "mark")
    done = run(*two(launcher, script(tmp_path, ALL_REDUCE), mark), CRASH="1")
    assert done.returncode != 0
    last = done.stderr.rpartition("\n\n")[2]
    assert last.startswith("rank 1 on"), done.stderr
    assert "RuntimeError: the first to fail" in last
    assert_all_end(mark, seconds=5)


def started(launcher: str, folder, mark: str, program: str = SAVES) -> subprocess.Popen[str]:
    """A launch whose two ranks are ready."""
    process = subprocess.Popen(
        two(launcher, script(folder, program), str(folder), mark),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        preexec_fn=listen_to_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    ready = 0
    for line in process.stdout:  # DeepSpeed logs there too
        ready += line == "ready\n"
        if ready == 2:
            return process
    raise AssertionError("the ranks ended before they were ready")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_which_has_time_to_save(tmp_path, launcher, number):
    mark = str(tmp_path / "mark")
    process = started(launcher, tmp_path, mark)
    process.send_signal(number)
    process.wait(timeout=60)
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert_all_end(mark, seconds=5)


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["ours", "its"])
@pytest.mark.parametrize("launcher", [*LAUNCHERS, "accelerate"])
def test_ranks_end_when_a_launcher_is_killed(tmp_path, launcher, killed):
    """`rlhf-hw launch` itself, or the torchrun, mpirun or DeepSpeed that it started; also with ranks that are busy saving."""
    require(launcher)
    mark = str(tmp_path / "mark")
    process = started(launcher, tmp_path, mark)
    if killed == "ours":
        process.kill()
        process.wait(timeout=10)
    else:
        (theirs,) = children_of(process.pid)
        os.kill(theirs, signal.SIGKILL)
        assert process.wait(timeout=40) == 128 + 9
    assert_all_end(mark, seconds=20)
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


@pytest.mark.slow
def test_a_rank_that_hears_nothing_is_ended_once_its_launcher_is_gone(tmp_path):
    mark = str(tmp_path / "mark")
    program = f"import sys\nfrom launchers import rank\nrank.GRACE_ALONE = 1\nsys.exit(rank.main({[script(tmp_path, DEAF), mark]!r}))"
    # the shell stands for a launcher; what follows keeps it from becoming the rank itself
    words = ["sh", "-c", f"{shlex.join([sys.executable, '-c', program])}; exit $?"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait(timeout=10)
    time.sleep(0.5)
    assert alive(mark)  # it was told, and does not listen
    assert_all_end(mark, seconds=10)


def rank(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, RANK, *words, timeout=60, **changes)


def test_a_rank_is_its_script_with_its_streams_arguments_and_exit_code(tmp_path):
    program = script(
        tmp_path, "import sys\nprint(sys.argv[1:])\nprint('seen', file=sys.stderr)\nsys.exit(3)\n"
    )
    done = rank(program, "-m", "a b", "--env")
    assert (done.stdout, done.stderr, done.returncode) == ("['-m', 'a b', '--env']\n", "seen\n", 3)
    done = rank("-m", "json.tool", "--help")
    assert done.returncode == 0
    assert "usage" in done.stdout


def test_a_rank_gets_its_place_from_open_mpi(tmp_path):
    program = script(
        tmp_path, "import os\nprint(os.environ['RANK'], os.environ['LOCAL_RANK'], os.environ['GIVEN'])\n"
    )
    place = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    assert rank("--env", "GIVEN=x=y", program, **place).stdout == "1 1 x=y\n"
    apart = rank(program, **{**place, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert apart.returncode == 2
    assert "mpirun -x MASTER_ADDR=host" in apart.stderr
    assert apart.stderr.count("\n") == 1


def test_a_training_process_does_not_outlive_its_rank(tmp_path):
    mark = str(tmp_path / "mark")
    program = script(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(100)\n")
    process = subprocess.Popen(
        [sys.executable, RANK, program, mark], stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait(timeout=10)
    assert_all_end(mark, seconds=5)


def test_a_rank_told_to_end_after_another_failed_has_seconds_to_do_so(tmp_path):
    Failure(0, "vm", 1, 1.0, False, "").write(tmp_path)
    program = script(
        tmp_path,
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(100)\n",
    )
    process = subprocess.Popen(
        [sys.executable, RANK, program],
        stdout=subprocess.PIPE,
        env=environment(RANK="1", RLHF_HW_RANK_FAILURES=str(tmp_path)),
    )
    assert process.stdout is not None
    process.stdout.readline()
    told = time.monotonic()
    process.terminate()
    assert process.wait(timeout=GRACE + 20) == 128 + 9
    assert time.monotonic() - told >= GRACE - 1
    assert first_failure(tmp_path).rank == 0  # the one that was told is no failure
    assert [path.name for path in tmp_path.glob("rank-*")] == ["rank-0.json"]


GONE = "Traceback (most recent call last):\nRuntimeError: Connection closed by peer [127.0.0.1]:3798\n"


@pytest.mark.parametrize(
    ("failures", "first"),
    [
        ([(0, 1, 2.0, False, ""), (1, 1, 1.0, False, "")], 1),
        ([(0, 1, 1.0, False, GONE), (1, 7, 2.0, False, "")], 1),  # it lost a peer that took longer to end
        ([(0, 1, 2.0, False, ""), (1, 143, 1.0, True, "Traceback (most recent call last):")], 1),
        ([(0, 143, 1.0, True, "")], None),  # all ended as they were told
        ([], None),
    ],
)
def test_the_first_failure_is_the_cause_of_the_others(tmp_path, failures, first):
    for number, code, when, told, output in failures:
        Failure(number, "vm", code, when, told, output).write(tmp_path)
    assert any_failure(tmp_path) == bool(failures)
    found = first_failure(tmp_path)
    assert (found.rank if found else None) == first


def test_last_words_are_the_whole_last_traceback_and_what_follows():
    chain = (
        "[rank1]: Traceback (most recent call last):\n[rank1]: KeyError: 1\n[rank1]: \n"
        "[rank1]: During handling of the above exception, another exception occurred:\n[rank1]: \n"
        "[rank1]: Traceback (most recent call last):\n[rank1]: ValueError: 2\n"
    )
    text = f"loading\nTraceback (most recent call last):\nOSError: lived through\ntraining\n{chain}goodbye\n"
    assert last_words(text) == f"{chain}goodbye"
    assert last_words("".join(f"{number}\n" for number in range(30))) == "\n".join(map(str, range(10, 30)))


def test_a_failure_on_another_machine_comes_home_in_one_line_whatever_the_pieces(tmp_path):
    failure = Failure(
        1, "beta", 1, 5.0, False, "Traceback (most recent call last):\n" + os.urandom(9000).hex()
    )
    line = failure.line()
    assert len(line) <= 3500
    stream = b"beta: 50%\rhalf \x1e a line\n" + b"beta: " + line + b"beta: the rest, without an end"
    for size in (1, 7, len(MARK), 4096):
        folder = tmp_path / str(size)
        folder.mkdir()
        lines = MarkedLines(folder)
        shown = b"".join(
            lines.feed(stream[at : at + size]) for at in range(0, len(stream), size)
        ) + lines.feed(b"")
        assert shown == stream.replace(line, b"")
        brought = first_failure(folder)
        assert (brought.rank, brought.host, brought.time) == (1, "beta", 5.0)
        assert failure.output.endswith(brought.output)
        assert brought.output
    assert json.loads((tmp_path / "1/rank-1.json").read_text())["code"] == 1


def test_a_torn_line_about_a_failure_is_shown_and_the_rest_is_read_on(tmp_path):
    lines = MarkedLines(tmp_path)
    assert (
        lines.feed(b"before\n" + MARK + b"not what was written\nafter\n")
        == (b"before\nafter\n" + MARK + b"not what was written\n")
        or lines.held == b""
    )
    assert lines.feed(b"more\n") == b"more\n"
    assert not any_failure(tmp_path)
