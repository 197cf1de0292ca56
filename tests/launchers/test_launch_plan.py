"""The command that a request becomes, word for word."""

import re
import shlex
from itertools import product

import pytest

from launchers import LaunchError, LaunchPlan, LaunchRequest, Machine, make_plan
from launchers.accelerate import started_alone
from launchers.hosts import Host, Machines
from launchers.machine import NvidiaGpu
from launchers.records import RANK_PROGRAM

CPU = Machine(cores=16, core_reason="16 cores")
GPUS = Machine(cores=64, core_reason="64 cores", nvidia_gpus=(NvidiaGpu("H100"),) * 8)
MACHINES = {"cpu": CPU, "cuda": GPUS}
TORCHRUN = ["python", "-m", "torch.distributed.run"]
TARGET = ["-m", "rlhf_hw.cli.sft", "--x", "1"]


def request(**changes) -> LaunchRequest:
    return LaunchRequest(**{"module": TARGET[1], "script_args": ("--x", "1"), "python": "python", **changes})


@pytest.mark.parametrize(("device", "processes"), product(("cpu", "cuda"), (1, 2, 8)))
def test_command_for_one_machine(device, processes):
    plan = make_plan(request(backend=device, processes=processes), MACHINES[device], environ={})
    if processes == 1:
        assert plan.command == ["python", *TARGET]
    else:
        assert plan.command == [
            *TORCHRUN,
            "--standalone",
            "--local_addr=127.0.0.1",
            "--nnodes=1",
            f"--nproc_per_node={processes}",
            RANK_PROGRAM,
            *TARGET,
        ]
    assert plan.environment == {"OMP_NUM_THREADS": str(MACHINES[device].cores // processes)}


@pytest.mark.parametrize(("device", "processes", "rank"), product(("cpu", "cuda"), (1, 2, 8), (0, 1)))
def test_command_for_two_machines(device, processes, rank):
    machines = Machines(2, (Host("alpha"), Host("beta")))
    plan = make_plan(
        request(backend=device, processes=processes, machines=machines, machine_rank=rank),
        MACHINES[device],
        environ={},
    )
    assert plan.command == [
        *TORCHRUN,
        "--nnodes=2",
        f"--nproc_per_node={processes}",
        f"--node_rank={rank}",
        "--master_addr=alpha",
        "--master_port=29500",
        RANK_PROGRAM,
        *TARGET,
    ]


@pytest.mark.parametrize(
    ("changes", "machine", "words"),
    [
        (
            {"processes": 2, "backend": "cpu", "master_port": 1234},
            CPU,
            "--multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no --dynamo_backend=no "
            "--main_process_port=1234",
        ),
        (
            {"processes": 1, "backend": "cpu"},
            CPU,
            "--cpu --num_processes=1 --num_machines=1 --mixed_precision=no --dynamo_backend=no",
        ),
        (
            {"machines": Machines(2), "machine_rank": 1, "master_addr": "alpha"},
            GPUS,
            "--multi_gpu --num_processes=16 --num_machines=2 --mixed_precision=no --dynamo_backend=no "
            "--machine_rank=1 --main_process_ip=alpha --main_process_port=29500",
        ),
    ],
)
def test_command_with_accelerate(changes, machine, words):
    plan = make_plan(request(launcher="accelerate", **changes), machine, environ={})
    rank = [RANK_PROGRAM] if "--multi_gpu" in words else []  # one process needs no watching
    assert plan.command == ["python", "-m", "accelerate.commands.launch", *words.split(), *rank, *TARGET]
    assert plan.environment.get("ACCELERATE_USE_CPU") == ("true" if machine is CPU else None)


def test_default_is_one_process_per_accelerator_and_one_on_a_cpu():
    assert "--nproc_per_node=8" in make_plan(request(), GPUS, environ={}).command
    assert make_plan(request(), CPU, environ={}).command == ["python", *TARGET]
    assert "--nproc_per_node=2" in make_plan(request(), Machine(8, "", gaudis=2), environ={}).command


def test_slots_of_a_hostfile_are_its_processes():
    machines = Machines(2, (Host("alpha", 4), Host("beta", 2)))
    counts = [
        make_plan(request(machines=machines, machine_rank=rank), GPUS, environ={}).command[4]
        for rank in (0, 1)
    ]
    assert counts == ["--nproc_per_node=4", "--nproc_per_node=2"]


def test_a_given_port_is_the_one_the_processes_meet_at():
    plan = make_plan(request(processes=2, master_port=4321), GPUS, environ={})
    assert "--master_addr=127.0.0.1" in plan.command
    assert "--master_port=4321" in plan.command
    assert "--standalone" not in plan.command


def test_threads_set_by_the_user_stay():
    assert make_plan(request(processes=2), CPU, environ={"OMP_NUM_THREADS": "3"}).environment == {}


def test_there_is_at_least_one_thread_and_its_reason_is_given():
    plan = make_plan(request(processes=8), Machine(2, "a cgroup quota of 2 out of 64 cores"), environ={})
    assert plan.environment["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS=1: a cgroup quota of 2 out of 64 cores for 8 processes" in plan.reason


def test_cpu_processes_on_a_gpu_machine_do_not_see_the_gpus():
    plan = make_plan(request(backend="cpu", processes=2), GPUS, environ={})
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_slurm_step_places_the_machine():
    environ = {
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_JOB_ID": "31234",
    }
    command = make_plan(request(), GPUS, environ).command
    assert command[3:8] == [
        "--nnodes=2",
        "--nproc_per_node=8",
        "--node_rank=1",
        "--master_addr=gpu07",
        "--master_port=29734",
    ]
    with pytest.raises(LaunchError, match="--ntasks-per-node=1"):
        make_plan(request(), GPUS, {**environ, "SLURM_STEP_NUM_TASKS": "16"})


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_RANK": "1", "PMI_SIZE": "2"},
    ],
)
def test_processes_are_not_multiplied_twice(environ):
    with pytest.raises(LaunchError, match="already inside"):
        make_plan(request(), GPUS, environ)


@pytest.mark.parametrize(
    ("changes", "machine", "message"),
    [
        ({"processes": 0}, CPU, "--processes 0: give a number from 1"),
        ({"processes": 9}, GPUS, "--processes 9: only 8 NVIDIA GPUs are visible here"),
        ({"backend": "cuda"}, CPU, "--device cuda: no NVIDIA GPU is visible"),
        ({"backend": "tpu"}, CPU, "--device tpu: unknown"),
        ({"launcher": "magic"}, CPU, "--launcher magic: unknown"),
        (
            {"launcher": "python", "processes": 2},
            CPU,
            "--launcher python: starts one process, 2 are asked for",
        ),
        ({"machines": Machines(2)}, CPU, "--machine_rank: which of the 2 machines"),
        ({"machines": Machines(2), "machine_rank": 2}, CPU, "--machine_rank 2: there are 2 machines"),
        ({"machines": Machines(2), "machine_rank": 0}, CPU, "--master_addr: give the first machine's"),
        ({"module": None}, CPU, "give either a stage or a script"),
        (
            {"backend": "cuda", "machines": Machines(2, (Host("a"), Host("b", 8))), "machine_rank": 0},
            CPU,
            "--processes: how many NVIDIA GPUs has each machine?",
        ),
        (
            {
                "launcher": "accelerate",
                "machines": Machines(2, (Host("a", 1), Host("b", 2))),
                "machine_rank": 0,
            },
            GPUS,
            "--launcher accelerate: needs as many processes on every machine",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_by_the_flags_name(changes, machine, message):
    with pytest.raises(LaunchError, match=re.escape(message)):
        make_plan(request(**changes), machine, environ={})


def test_shell_line_means_the_same_words_to_a_shell():
    awkward = ["it's", "a b", "$HOME", "*", "", "--reward=a;b", 'say "hi"', "new\nline"]
    line = LaunchPlan(["python", *awkward], {"EMPTY": "", "TWO": "a b"}).shell()
    assert shlex.split(line) == ["EMPTY=", "TWO=a b", "python", *awkward]


def test_a_process_that_accelerate_started_alone_is_told_so():
    several_on_cpu = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    assert "torchrun" in started_alone(several_on_cpu)
    assert started_alone({**several_on_cpu, "RANK": "0"}) is None
    assert started_alone({"ACCELERATE_USE_CPU": "False", "MASTER_PORT": "29500"}) is None
    assert started_alone({"ACCELERATE_USE_CPU": "True"}) is None
