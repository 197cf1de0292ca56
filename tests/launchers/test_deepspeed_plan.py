"""DeepSpeed's command, word for word; and a run of it where DeepSpeed is installed."""

import importlib.util
import re
import sys

import pytest
from launched import ALL_REDUCE, LAUNCH, assert_all_end, run, script

from launchers import LaunchError, LaunchRequest, Machine, make_plan
from launchers.hosts import Host, Machines, read_hostfile
from launchers.machine import NvidiaGpu
from launchers.rank import command_of
from launchers.records import RANK_PROGRAM

GPUS = Machine(cores=64, core_reason="64 cores", nvidia_gpus=(NvidiaGpu("H100"),) * 8)
RUNNER = [sys.executable, "-m", "deepspeed.launcher.runner"]
PDSH = "#!/bin/sh\necho pdsh-2.34\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """DeepSpeed in this interpreter, and pdsh on the PATH that is returned."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed/__init__.py").write_text("raise RuntimeError('a launcher must not import this')\n")
    monkeypatch.syspath_prepend(tmp_path)
    program = tmp_path / "pdsh"
    program.write_text(PDSH)
    program.chmod(0o755)
    return str(tmp_path)


def plan(path: str = "", environ: dict[str, str] | None = None, **changes):
    request = LaunchRequest(
        **{
            "script": "train.py",
            "script_args": ("--x", "1"),
            "launcher": "deepspeed",
            "master_port": 1234,
            **changes,
        }
    )
    return make_plan(request, GPUS, {"PATH": path, **(environ or {})})


@pytest.mark.usefixtures("installed")
def test_command_for_one_machine():
    done = plan()
    assert done.command == [
        *(*RUNNER, "--hostfile", "", "--num_gpus", "8", "--no_local_rank"),
        *("--master_addr", "127.0.0.1", "--master_port", "1234", RANK_PROGRAM, "train.py", "--x", "1"),
    ]
    assert done.environment == {"OMP_NUM_THREADS": "8", "DS_ACCELERATOR": "cuda"}


@pytest.mark.usefixtures("installed")
def test_the_users_own_choice_of_gpus_and_accelerator_stays():
    environ = {"CUDA_VISIBLE_DEVICES": "4,6", "DS_ACCELERATOR": "cuda"}
    done = plan(environ=environ, processes=2)
    assert done.command[5:7] == ["--include", "localhost:4,6"]
    assert "DS_ACCELERATOR" not in done.environment
    with pytest.raises(LaunchError, match="takes devices by number"):
        plan(environ={"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, processes=1)


@pytest.mark.usefixtures("installed")
def test_cpu_processes_are_not_given_gpus():
    done = plan(backend="cpu", processes=2)
    assert done.environment["DS_ACCELERATOR"] == "cpu"
    assert done.command[-6:] == [RANK_PROGRAM, "--env", "CUDA_VISIBLE_DEVICES=", "train.py", "--x", "1"]


def test_command_for_several_machines(installed, tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=8\nbeta slots=4\n")
    environ = {
        "HF_HOME": "/data/hf",
        "HF_TOKEN": "secret",
        "WANDB_API_KEY": "secret",
        "HF_ENDPOINT": "https://me:pw@mirror",
        "TOKENIZERS_PARALLELISM": "false",
        "NCCL_DEBUG": "INFO",  # DeepSpeed's own business
    }
    awkward = ("--system", "You're $HOME; 100% *", "--lr=1e-5")
    done = plan(installed, environ, machines=read_hostfile(str(hostfile)), script_args=awkward)
    assert done.command[3:10] == [
        *("--hostfile", str(hostfile), "--no_local_rank"),
        *("--master_addr", "alpha", "--master_port", "1234"),
    ]
    assert done.everywhere
    tail = done.command[done.command.index(RANK_PROGRAM) + 1 :]
    given = [tail[index + 1] for index, word in enumerate(tail) if word == "--env"]
    assert given == [
        *("RLHF_HW_RANK_FAILURES=stderr", "DS_ACCELERATOR=cuda", "HF_HOME=/data/hf", "OMP_NUM_THREADS=8"),
        "TOKENIZERS_PARALLELISM=false",
    ]
    assert all(re.fullmatch(r"[-\w./=%,:~+@]+", word) for word in tail)  # a shell and pdsh leave these alone


def test_words_encoded_for_pdsh_reach_the_script_as_they_were(installed, tmp_path, monkeypatch):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=8\nbeta slots=8\n")
    awkward = ("--system", "You're $HOME; 100% *", "--lr=1e-5", "", "%20")
    done = plan(installed, machines=read_hostfile(str(hostfile)), script_args=awkward)
    tail = done.command[done.command.index(RANK_PROGRAM) + 1 :]
    for word in ("RLHF_HW_RANK_FAILURES", "DS_ACCELERATOR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(word, "")  # command_of sets them in this process
    assert command_of(tail)[2:] == ["train.py", *awkward]


def test_a_stages_deepspeed_flag_chooses_deepspeed_where_it_is_installed(installed):
    words = ("--deepspeed", "zero2.json")
    assert plan(launcher="auto", script_args=words).command[:3] == RUNNER
    assert plan(launcher="auto", script_args=("--deepspeed=zero2.json",), processes=1).command[:3] == RUNNER
    two = Machines(2, (Host("alpha", 8), Host("beta", 8)))
    several = plan(installed, launcher="auto", script_args=words, machines=two, machine_rank=0)
    assert several.command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert "it needs no ssh" in several.reason
    elsewhere = plan(launcher="auto", script_args=words, python="/no/such/python")
    assert elsewhere.command[:3] == ["/no/such/python", "-m", "torch.distributed.run"]
    assert "torchrun, since deepspeed is not installed" in elsewhere.reason


def test_what_deepspeed_cannot_do_is_refused(installed, tmp_path):
    with pytest.raises(LaunchError, match="/no/such/python has no deepspeed; pip install deepspeed"):
        plan(python="/no/such/python")
    with pytest.raises(LaunchError, match="give --hostfile with 'host slots=8' on every line"):
        plan(installed, machines=Machines(2, (Host("alpha", 8), Host("beta", 8))))
    hostfile = tmp_path / "hosts"
    hostfile.write_text("alpha slots=8\nbeta slots=8\n")
    machines = read_hostfile(str(hostfile))
    with pytest.raises(LaunchError, match="no pdsh on PATH"):
        plan("", machines=machines)
    with pytest.raises(LaunchError, match="leave --processes out"):
        plan(installed, machines=machines, processes=4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("crash", [False, True])
def test_deepspeed_starts_ranks_that_meet_and_names_the_first_to_fail(tmp_path, crash):
    mark = str(tmp_path / "mark")
    words = (
        "--launcher",
        "deepspeed",
        "--processes",
        "2",
        "--device",
        "cpu",
        script(tmp_path, ALL_REDUCE),
        mark,
    )
    done = run(*LAUNCH, *words, **({"CRASH": "1"} if crash else {}))
    assert (done.returncode == 0) is not crash, done.stderr
    assert done.stdout.count("sums to 3.0") == 2
    assert ("rank 1 on" in done.stderr and "the first to fail" in done.stderr[-200:]) is crash
    assert_all_end(mark)
