"""`gaudi_spawn.py` as its users type it, on a machine without a Gaudi: emulated, on the CPU, or not at all."""

import shlex
import sys

import pytest
from launched import ALL_REDUCE, GAUDI_SPAWN, require_mpirun, run, script

from launchers import LaunchError, LaunchRequest, Machine, make_plan
from launchers.gaudi_spawn import build_parser, joined, request_from
from launchers.hosts import Host
from launchers.installed import EMULATOR_PACKAGE, has_package

# One write: print() under `python -u` makes two, which mix with the other rank's.
TELL = """
import os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "HPU_EMULATOR_DEVICES", "RLHF_HW_DEVICE", "MASTER_ADDR")
os.write(1, f"{[os.environ.get(name) for name in names]} {sys.argv[1:]}{os.linesep}".encode())
"""
#: An interpreter without site-packages has neither torch nor an emulator.
BARE = [sys.executable, "-S", GAUDI_SPAWN[1]]


@pytest.fixture
def emulator(tmp_path):
    """A folder with a package of the emulator's name; importing it is an error, for a launcher must not."""
    package = tmp_path / "site" / EMULATOR_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    return str(package.parent)


def parse(*words: str):
    return request_from(build_parser().parse_args(joined(words)))


@pytest.fixture
def train(tmp_path):
    return script(tmp_path, TELL)


@pytest.mark.parametrize(
    ("flags", "launcher"),
    [
        ("--world_size 8 --use_mpi", "mpirun"),
        ("--world_size=8 --use_mpi True", "mpirun"),
        ("--use-mpi=true --world-size 8", "mpirun"),
        ("--world_size 8 --use_mpi False", "torchrun"),
        ("--world_size 8 --use_deepspeed", "deepspeed"),
        ("--use_deepspeed True --world_size 8 --master_port 1", "deepspeed"),
        ("--world_size 8", "torchrun"),
        ("--use_mpi", "auto"),
        ("", "auto"),
    ],
)
def test_flags_choose_the_launcher(train, flags, launcher):
    request = parse(*flags.split(), train, "--use_mpi", "False", "--bf16", "True")
    assert request.launcher == launcher
    assert request.processes == (8 if "8" in flags else 1)
    assert request.script_args == ("--use_mpi", "False", "--bf16", "True")
    assert request.backend == "hpu"


def test_the_scripts_own_device_decides_between_gaudi_and_cpu(train):
    assert parse(train, "--device", "hpu", "--use_habana").backend == "hpu"
    assert parse(train, "--device=habana").backend == "hpu"
    assert parse(train, "--device", "cpu").backend == "cpu"
    with pytest.raises(LaunchError, match=r"--device cuda: gaudi_spawn\.py starts it on Gaudis"):
        parse(train, "--device", "cuda")


def test_slots_are_the_processes_and_world_size_must_agree(train, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("alpha slots=8\nbeta slots=4\n")
    assert parse("--hostfile", str(hosts), "--use_mpi", train).machines.hosts == (
        Host("alpha", 8),
        Host("beta", 4),
    )
    assert parse("--world_size", "12", "--hostfile", str(hosts), "--use_mpi", train).processes is None
    with pytest.raises(LaunchError, match="--world_size 8: the hostfile's slots add up to 12"):
        parse("--world_size", "8", "--hostfile", str(hosts), "--use_mpi", train)
    hosts.write_text("alpha\nbeta\n")
    request = parse("--world_size", "16", "--hostfile", str(hosts), "--use_mpi", train)
    assert request.machines.hosts == (Host("alpha", 8), Host("beta", 8))
    with pytest.raises(LaunchError, match="write 'host slots=8' on every line"):
        parse("--world_size", "3", "--hostfile", str(hosts), "--use_mpi", train)


def test_help_explains():
    done = run(*GAUDI_SPAWN, "--help")
    assert done.returncode == 0
    for word in (
        "--world_size",
        "--hostfile",
        "--use_mpi",
        "--use_deepspeed",
        "--master_port",
        "--dry_run",
        "emulated",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TRAIN"], "--device hpu: no Gaudi is visible on this machine"),
        (["--world_size", "2", "TRAIN", "--use_habana"], "install habana-torch-plugin-emulator"),
        (["none.py"], "none.py: no such file"),
        (["--use_mpi", "--use_deepspeed", "TRAIN"], "give one of them"),
        (["--world_size", "0", "TRAIN", "--device", "cpu"], "--processes 0"),
        (
            ["--world_size", "2", "--use_deepspeed", "TRAIN", "--device", "cpu"],
            "has no deepspeed; pip install deepspeed",
        ),
        (["--hostfile", "none.txt", "TRAIN"], "--hostfile none.txt: No such file"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_status_2(train, words, message):
    done = run(*BARE, *[train if word == "TRAIN" else word for word in words])
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("gaudi_spawn.py: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_missing_mpirun_names_its_package(train, tmp_path):
    done = run(*BARE, "--world_size", "2", "--use_mpi", train, "--device", "cpu", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "apt-get install openmpi-bin" in done.stderr


def test_an_emulated_gaudi_is_said_first_and_is_as_many_as_asked_for(train, emulator):
    require_mpirun()
    words = ("--world_size", "2", "--use_mpi", train, "--prompt", "a 'b' $c", "--use_habana", "")
    done = run(*BARE, *words, PYTHONPATH=emulator)
    assert done.returncode == 0, done.stderr
    assert "emulated on CPU memory" in done.stderr.splitlines()[0]
    passed_on = ["--prompt", "a 'b' $c", "--use_habana", ""]
    assert sorted(done.stdout.splitlines()) == [
        f"{[rank, '2', rank, '2', 'hpu', '127.0.0.1']} {passed_on}" for rank in ("0", "1")
    ]


def test_one_emulated_process_runs_without_a_launcher(train, emulator):
    done = run(*BARE, train, "--x", PYTHONPATH=emulator, MASTER_ADDR="")
    assert done.returncode == 0, done.stderr
    assert "emulated" in done.stderr.splitlines()[0]
    assert done.stdout.strip() == f"{[None, None, None, '1', 'hpu', '']} ['--x']"


def test_a_real_gaudi_is_not_called_emulated_and_auto_never_is(emulator, monkeypatch):
    monkeypatch.syspath_prepend(emulator)
    real = Machine(cores=8, core_reason="8 cores", gaudis=2, sockets=(8,))
    none = Machine(cores=8, core_reason="8 cores", sockets=(8,))
    request = LaunchRequest(script="train.py", backend="hpu", processes=1)
    plan = make_plan(request, real, environ={})
    assert "emulated" not in plan.reason
    assert "HPU_EMULATOR_DEVICES" not in plan.environment
    assert "emulated" in make_plan(request, none, environ={}).reason
    auto = make_plan(LaunchRequest(script="train.py"), none, environ={})
    assert auto.reason.startswith("cpu, since no NVIDIA GPU and no Gaudi is visible")
    assert "RLHF_HW_DEVICE" not in auto.environment


def test_another_interpreter_is_asked_whether_it_has_the_emulator(tmp_path, emulator):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec env PYTHONPATH={shlex.quote(emulator)} {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    assert has_package(str(python), EMULATOR_PACKAGE)
    assert not has_package(str(python), "no_such_package_anywhere")
    assert not has_package("/no/such/python", EMULATOR_PACKAGE)


def test_dry_run_prints_the_command_and_runs_nothing(train, emulator):
    require_mpirun()
    done = run(*BARE, "--world_size", "4", "--use_mpi", "--dry_run", train, "--x", "a b", PYTHONPATH=emulator)
    assert done.returncode == 0
    words = shlex.split(done.stdout)
    assert words[-3:] == [train, "--x", "a b"]
    assert "HPU_EMULATOR_DEVICES=4" in words
    assert words[words.index("mpirun") + 1 : words.index("mpirun") + 3] == ["-n", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--use_mpi"])
def test_two_cpu_processes_meet(tmp_path, flags):
    if flags:
        require_mpirun()
    program = script(tmp_path, ALL_REDUCE)
    done = run(*GAUDI_SPAWN, "--world_size", "2", *flags.split(), program, "--device", "cpu", "--lr", "1 2")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 sums to 3.0" in done.stdout
    assert done.stdout.count("got ['--device', 'cpu', '--lr', '1 2']") == 2
