"""`rlhf-hw launch` as a user types it: real processes, real signals, real exit codes."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupts import listen_to_interrupts

from launchers.hosts import free_port
from rlhf_hw.cli.launch import build_parser, request_from

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "rlhf_hw.cli.launch"]

ALL_REDUCE = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
line = f"rank {dist.get_rank()} of {dist.get_world_size()} sums to {total.item()}, got {sys.argv[1:]}"
os.write(1, f"{line}{os.linesep}".encode())  # in one piece: print() writes the line's end apart
dist.destroy_process_group()
sys.exit(int(os.environ.get("END_WITH", "0")))
"""
WAIT = """
import signal, sys, time
def stop(number, frame):
    print(f"got {signal.Signals(number).name}", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
"""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def launch(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, *words], cwd=ROOT, env=environment(**changes), capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_cpu_processes_meet_and_their_failure_is_ours(tmp_path, launcher):
    script = tmp_path / "all reduce.py"
    script.write_text(ALL_REDUCE)
    words = ("--processes", "2", "--device", "cpu", "--launcher", launcher, str(script), "--lr", "1 2")
    done = launch(*words)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 sums to 3.0, got ['--lr', '1 2']" in done.stdout
    assert (
        "--num_processes=2" in done.stderr or "--nproc_per_node=2" in done.stderr
    )  # the command, before it ran
    assert launch(*words, END_WITH="7").returncode == 7


@pytest.mark.slow
def test_two_machines_meet_and_each_holds_the_ranks_of_its_place(tmp_path):
    script = tmp_path / "place.py"
    script.write_text("import os\nprint(os.environ['MACHINE'], os.environ['RANK'], flush=True)\n")
    # The first machine's address sorts after the second's: ranks must follow the places all the same.
    words = ["--machines", "127.0.0.2,127.0.0.1", "--master_port", str(free_port()), "--processes", "1"]
    machines = [
        subprocess.Popen(
            [*LAUNCH, *words, "--device", "cpu", "--machine_rank", str(rank), str(script)],
            cwd=ROOT,
            env=environment(MACHINE=f"machine{rank}"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    outputs = [machine.communicate(timeout=240)[0].strip() for machine in machines]
    assert outputs == ["machine1 1", "machine0 0"]
    assert [machine.returncode for machine in machines] == [0, 0]


def test_exit_code_of_a_single_process_is_returned(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(7)")
    assert launch("--device", "cpu", str(script)).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_child_and_its_own_exit_code_comes_back(tmp_path, number):
    script = tmp_path / "waits.py"
    script.write_text(WAIT)
    process = subprocess.Popen(
        [*LAUNCH, "--device", "cpu", str(script)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        preexec_fn=listen_to_interrupts,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert output == f"got {number.name}\n"
    assert process.returncode == 5


@pytest.mark.slow
def test_sigterm_ends_every_worker_of_torchrun(tmp_path):
    script = tmp_path / "waits.py"
    # one write a line: print() under torchrun's `python -u` makes two, which mix with the other worker's
    script.write_text("import os, time\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [*LAUNCH, "--processes", "2", "--device", "cpu", str(script)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_dry_run_prints_the_command_and_runs_nothing(tmp_path):
    script, trace = tmp_path / "leaves a trace.py", tmp_path / "trace"
    script.write_text(f"open({str(trace)!r}, 'w')")
    done = launch("--dry_run", "--processes", "2", "--device", "cpu", str(script), "--x", "a b")
    assert done.returncode == 0
    assert not trace.exists()
    assert shlex.split(done.stdout)[-3:] == [str(script), "--x", "a b"]


def test_every_machines_command_is_printed_where_none_can_be_started():
    words = ("--machines", "alpha.invalid,beta.invalid", "--device", "cpu", "sft", "--x")
    done = launch("--dry_run", *words)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0::2] == ["# on alpha.invalid", "# on beta.invalid"]
    for rank, line in enumerate(lines[1::2]):
        assert f"--node_rank={rank} --master_addr=alpha.invalid" in line
    refused = launch(*words)
    assert refused.returncode == 2
    assert refused.stdout == done.stdout
    assert "nothing was started" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stf"], "stf: neither a stage (sft, reward, ppo) nor a file"),
        (["--device", "cpu", "sft", "--device", "cuda"], "--device cpu: sft is given --device cuda"),
        (["--processes", "0", "sft"], "--processes 0"),
        (["--hostfile", "none.txt", "sft"], "--hostfile none.txt: No such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message):
    done = launch(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"rlhf-hw launch: {message}")
    assert done.stderr.count("\n") == 1


def parse(*words: str):
    return request_from(build_parser().parse_args(words))


def test_a_stage_is_told_the_device_that_launch_was_told():
    assert parse("--device", "cpu", "sft", "c.yaml", "--x").script_args == (
        "c.yaml",
        "--x",
        "--device",
        "cpu",
    )
    assert parse("--device", "cpu", "sft", "--device=cpu").script_args == ("--device=cpu",)
    assert parse("sft", "--x").script_args == ("--x",)


def test_launch_hears_the_device_that_a_stage_is_told():
    assert parse("ppo", "--device", "cpu").backend == "cpu"
    assert parse("ppo", "--device=habana").backend == "hpu"
    assert parse("ppo").backend == "auto"


def test_use_habana_means_hpu():
    assert parse("sft", "--use_habana", "--use_lazy_mode").backend == "hpu"
    assert parse("sft", "--use_habana", "False").backend == "auto"
    assert parse("--device", "cpu", "sft", "--x").backend == "cpu"
    assert parse(__file__, "--device", "hpu").backend == "hpu"
    assert (
        parse(__file__, "--device", "cuda").backend == "auto"
    )  # another script's --device may mean anything


def test_everything_after_the_stage_belongs_to_it():
    request = parse("--processes", "2", "reward", "--processes", "5", "--help", "--dry_run")
    assert request.module == "rlhf_hw.cli.reward"
    assert request.processes == 2
    assert request.script_args == ("--processes", "5", "--help", "--dry_run")


def test_launch_loads_neither_torch_nor_transformers():
    program = "import sys, rlhf_hw.cli.launch; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=True, timeout=60)
