"""mpirun's command, word for word; and that the installed mpirun takes it."""

import os
import re
import sys

import pytest
from launched import ALL_REDUCE, require_mpirun, run, script

from launchers import LaunchError, LaunchRequest, Machine, make_plan
from launchers.hosts import Host, Machines
from launchers.machine import confinement, cores_of_sockets, cpu_list, this_machine
from launchers.mpi import binding
from launchers.ompi import set_rank_variables
from launchers.records import RANK_PROGRAM

GAUDIS = Machine(cores=76, core_reason="76 cores", gaudis=8, sockets=(38, 38))
MPIRUN = "#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n"
ROOTS = ["--allow-run-as-root"] if os.geteuid() == 0 else []


@pytest.fixture
def path(tmp_path):
    """A folder with an mpirun that says it is Open MPI's."""
    program = tmp_path / "mpirun"
    program.write_text(MPIRUN)
    program.chmod(0o755)
    return str(tmp_path)


def plan(path: str, machine: Machine = GAUDIS, environ: dict[str, str] | None = None, **changes):
    request = LaunchRequest(
        **{
            "script": "train.py",
            "script_args": ("--x", "1"),
            "python": "python",
            "launcher": "mpirun",
            **changes,
        }
    )
    return make_plan(request, machine, {"PATH": path, **(environ or {})})


def test_command_for_eight_gaudis(path):
    done = plan(path, master_port=1234)
    assert done.command == [
        *("mpirun", "-n", "8"),
        *("--bind-to", "core", "--map-by", "socket:PE=9", "--rank-by", "slot", "--report-bindings"),
        *ROOTS,
        *("-x", "MASTER_ADDR=127.0.0.1", "-x", "MASTER_PORT=1234"),
        *("python", RANK_PROGRAM, "train.py", "--x", "1"),
    ]
    assert done.environment == {"OMP_NUM_THREADS": "9", "RLHF_HW_DEVICE": "hpu"}
    assert "each bound to 9 cores of 76" in done.reason


def test_command_for_several_machines_names_hosts_slots_and_what_they_must_know(path):
    machines = Machines(2, (Host("alpha", 8), Host("beta", 4)))
    environ = {
        "HF_TOKEN": "secret",
        "PT_HPU_LAZY_MODE": "0",
        "HOME": "/root",
        "RLHF_HW_RANK_FAILURES": "/tmp/x",
    }
    words = plan(path, environ=environ, backend="hpu", machines=machines).command
    assert words[:5] == ["mpirun", "-n", "12", "--host", "alpha:8,beta:4"]
    given = [words[index + 1] for index, word in enumerate(words) if word == "-x"]
    assert given == [
        *("MASTER_ADDR=alpha", "MASTER_PORT=29500", "RLHF_HW_RANK_FAILURES=stderr"),
        *("HF_TOKEN", "OMP_NUM_THREADS", "PATH", "PT_HPU_LAZY_MODE", "RLHF_HW_DEVICE"),
    ]
    assert "secret" not in " ".join(words)


@pytest.mark.parametrize(
    ("processes", "sockets", "words"),
    [
        (8, (38, 38), "--bind-to core --map-by socket:PE=9 --rank-by slot"),
        (8, (32,), "--bind-to core --map-by socket:PE=4 --rank-by slot"),
        (3, (4, 4), "--bind-to core --map-by socket:PE=2 --rank-by slot"),
        (3, (2, 2), "--bind-to core --map-by socket:PE=1 --rank-by slot"),
        (2, (1, 1), "--bind-to core --map-by socket:PE=1 --rank-by slot"),  # a VM whose CPUs are sockets
        (2, (2,), "--bind-to core --map-by socket:PE=1 --rank-by slot"),
        (4, (3, 1), "--bind-to none --map-by slot"),
        (1, (8, 8), "--bind-to none --map-by slot"),
        (8, (2,), "--bind-to none --map-by slot --oversubscribe"),
        (2, (), "--bind-to none --map-by slot"),
    ],
)
def test_cores_are_shared_out_as_the_sockets_allow(processes, sockets, words):
    machine = Machine(cores=sum(sockets) or 8, core_reason="", sockets=sockets)
    assert " ".join(binding(processes, machine)[0]) == words


def test_a_part_of_a_machine_is_not_bound_and_the_reason_is_given():
    masked = Machine(
        cores=8, core_reason="8 cores", sockets=(8,), confined="an affinity mask of 8 of 64 CPUs"
    )
    words, reason = binding(2, masked)
    assert words[:2] == ["--bind-to", "none"]
    assert "an affinity mask of 8 of 64 CPUs" in reason
    narrow = Machine(
        cores=2, core_reason="a cgroup quota of 2 out of 64 cores", sockets=(64,), confined="a quota"
    )
    words, reason = binding(4, narrow)
    assert "--oversubscribe" in words
    assert "a cgroup quota of 2 out of 64 cores" in reason


def test_sockets_and_confinement_are_read_from_the_kernel(tmp_path):
    topology = tmp_path / "sys/devices/system/cpu"
    for cpu, (package, siblings) in enumerate(
        [("0", "0,4"), ("0", "1"), ("1", "2"), ("1", "3"), ("0", "0,4")]
    ):
        (topology / f"cpu{cpu}/topology").mkdir(parents=True)
        (topology / f"cpu{cpu}/topology/physical_package_id").write_text(f"{package}\n")
        (topology / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{siblings}\n")
    (topology / "online").write_text("0-4\n")
    assert cores_of_sockets({0, 1, 2, 3, 4}, tmp_path) == (2, 2)
    assert cores_of_sockets({2}, tmp_path) == (1,)
    assert confinement({0, 1, 2, 3, 4}, None, tmp_path) == ""
    assert confinement({0, 1}, None, tmp_path) == "an affinity mask of 2 of 5 CPUs"
    assert confinement({0, 1, 2, 3, 4}, 2.0, tmp_path) == "a cgroup quota of 2 of 5 CPUs"
    assert cpu_list("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}


def test_gaudis_of_one_machine_get_mpirun_where_it_is_installed(path):
    assert plan(path, launcher="auto").command[0] == "mpirun"
    torchrun = plan("", launcher="auto")
    assert torchrun.command[:3] == ["python", "-m", "torch.distributed.run"]
    assert "torchrun, since mpirun is not installed" in torchrun.reason
    assert plan(path, launcher="auto", processes=1).command[:2] == ["python", "train.py"]


def test_what_mpirun_cannot_do_is_refused(path, tmp_path):
    with pytest.raises(
        LaunchError, match=re.escape("no mpirun on PATH; install Open MPI (apt-get install openmpi-bin)")
    ):
        plan("")
    with pytest.raises(LaunchError, match="needs the machines' names"):
        plan(path, machines=Machines(2), master_addr="alpha")
    with pytest.raises(LaunchError, match="--machine_rank 1: mpirun starts the processes of all machines"):
        plan(path, machines=Machines(2, (Host("a", 1), Host("b", 1))), machine_rank=1)
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho 'HYDRA build details:'\n")
    with pytest.raises(LaunchError, match="says 'HYDRA build details:', and Open MPI is needed"):
        plan(path)


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
}


def test_open_mpis_place_becomes_torchs():
    environ = {**OPEN_MPI, "PMIX_NAMESPACE": "prterun-vm-7655@1"}
    assert set_rank_variables(environ)
    assert [environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == [
        "5",
        "8",
        "1",
        "8",
    ]
    assert environ["MASTER_ADDR"] == "127.0.0.1"
    other = {**OPEN_MPI, "PMIX_NAMESPACE": "prterun-vm-7656@1"}
    set_rank_variables(other)
    assert other["MASTER_PORT"] != environ["MASTER_PORT"]  # another job on the same machine


def test_what_torch_knows_already_stays():
    for environ in (
        {},
        {**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
    ):
        before = dict(environ)
        assert not set_rank_variables(environ)
        assert environ == before


def test_processes_on_several_machines_need_an_address():
    with pytest.raises(LaunchError, match="mpirun -x MASTER_ADDR=host"):
        set_rank_variables({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    with pytest.raises(LaunchError, match="PMI_SIZE=8 is set and MPI_LOCALRANKID is not"):
        set_rank_variables({"PMI_RANK": "1", "PMI_SIZE": "8"})


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_installed_mpirun_takes_the_command(tmp_path, processes):
    require_mpirun()
    program = script(tmp_path, "import os\nos.write(1, f\"{os.environ['RANK']}{os.linesep}\".encode())\n")
    request = LaunchRequest(script=program, backend="cpu", processes=processes, launcher="mpirun")
    planned = make_plan(request, this_machine())
    if processes == 1:  # mpirun names no rank among one
        planned.command[-1:] = [script(tmp_path, "print(0)\n", "alone.py")]
    done = run(*planned.command, timeout=60, **planned.environment)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [str(rank) for rank in range(processes)]


@pytest.mark.slow
def test_processes_of_a_bare_mpirun_meet_once_they_map_their_place(tmp_path):
    require_mpirun()
    program = script(
        tmp_path, f"from launchers.ompi import set_rank_variables\nset_rank_variables()\n{ALL_REDUCE}"
    )
    done = run(
        *("mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", *ROOTS, sys.executable, program),
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line.partition(" on ")[0] for line in done.stdout.splitlines()) == [
        "rank 0 of 2 sums to 3.0",
        "rank 1 of 2 sums to 3.0",
    ]
