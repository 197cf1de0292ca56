"""Two hosts: network namespaces with an address and a host name each, joined by a cable, and an `ssh` that enters them.

What is not the real thing: both share the files and the processes' numbers, and nobody logs in.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import (
    ALL_REDUCE,
    GAUDI_SPAWN,
    LAUNCH,
    ROOT,
    assert_all_end,
    environment,
    require_mpirun,
    script,
)

# ssh [options] host command…
SSH = """#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in -o|-p|-l|-i) shift 2;; -*) shift;; *) break;; esac
done
host=$1; shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; cd /; $*"
"""


class Hosts:
    """Host names, and commands on them."""

    def __init__(self, names: tuple[str, str], folder: Path) -> None:
        self.names = names
        self.folder = folder
        self.file = folder / "hosts.txt"
        self.file.write_text("".join(f"{name} slots=1\n" for name in names))

    def popen(self, host: str, *words: str, **changes: str) -> subprocess.Popen[str]:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        enter = [
            "ip",
            "netns",
            "exec",
            host,
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {host}; exec "$@"',
            "sh",
        ]
        return subprocess.Popen(
            [*enter, *words],
            cwd=ROOT,
            env=environment(PATH=path, **changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, host: str, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        process = self.popen(host, *words, **changes)
        try:
            output, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, output, errors)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = (f"rh-a-{os.getpid()}", f"rh-b-{os.getpid()}")
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, timeout=30).returncode != 0:
        pytest.skip("network namespaces are not allowed here")
    folder = tmp_path_factory.mktemp("hosts")
    addresses = ("10.213.77.1", "10.213.77.2")
    table = "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for a, n in zip(addresses, names, strict=True))
    try:
        for command in (
            f"ip netns add {names[1]}",
            f"ip link add rh0 netns {names[0]} type veth peer name rh0 netns {names[1]}",
            *(f"ip -n {n} addr add {a}/24 dev rh0" for a, n in zip(addresses, names, strict=True)),
            *(f"ip -n {name} link set {link} up" for name in names for link in ("lo", "rh0")),
        ):
            subprocess.run(command.split(), check=True, timeout=30)
        for name in names:  # `ip netns exec` lays these over /etc
            Path("/etc/netns", name).mkdir(parents=True)
            Path("/etc/netns", name, "hosts").write_text(table)
        (folder / "ssh").write_text(SSH)
        (folder / "ssh").chmod(0o755)
        yield Hosts(names, folder)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def assert_met(hosts: Hosts, output: str) -> None:
    for rank, name in enumerate(hosts.names):
        assert f"rank {rank} of 2 sums to 3.0 on {name}" in output


@pytest.mark.slow
def test_mpirun_starts_a_rank_on_each_host_from_the_first(hosts, tmp_path):
    require_mpirun()
    words = (
        "--hostfile",
        str(hosts.file),
        "--use_mpi",
        script(tmp_path, ALL_REDUCE),
        "--device",
        "cpu",
        "a 'b;$c",
    )
    done = hosts.run(hosts.names[0], *GAUDI_SPAWN, *words)
    assert done.returncode == 0, done.stderr
    assert_met(hosts, done.stdout)
    assert done.stdout.count("""['--device', 'cpu', "a 'b;$c"]""") == 2


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_fails_on_either_host_is_named_last_on_the_first(hosts, tmp_path, first):
    require_mpirun()
    mark = str(tmp_path / "mark")
    words = (
        "--hostfile",
        str(hosts.file),
        "--launcher",
        "mpirun",
        "--device",
        "cpu",
        script(tmp_path, ALL_REDUCE),
        mark,
    )
    done = hosts.run(hosts.names[0], *LAUNCH, *words, CRASH=str(first))
    assert done.returncode != 0
    last = done.stderr.rpartition("\n\n")[2]
    assert last.startswith(f"rank {first} on {hosts.names[first]} failed first"), done.stderr
    assert "RuntimeError: the first to fail" in last
    assert "\x1e" not in done.stderr
    assert_all_end(mark)


@pytest.mark.slow
def test_torchrun_is_one_printed_command_a_host_and_they_meet(hosts, tmp_path):
    words = ("--hostfile", str(hosts.file), "--device", "cpu", script(tmp_path, ALL_REDUCE))
    printed = hosts.run(hosts.names[0], *LAUNCH, "--dry_run", *words)
    lines = printed.stdout.splitlines()
    assert lines[0::2] == [f"# on {name}" for name in hosts.names]
    second = hosts.popen(hosts.names[1], "sh", "-c", lines[3])  # as a user pastes it
    first = hosts.run(hosts.names[0], *LAUNCH, *words)
    output, errors = second.communicate(timeout=60)
    assert first.returncode == second.returncode == 0, first.stderr + errors
    assert_met(hosts, first.stdout + output)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.skipif(shutil.which("pdsh") is None, reason="pdsh is not installed")
@pytest.mark.parametrize("crash", [False, True])
def test_deepspeed_starts_a_rank_on_each_host_from_the_first(hosts, tmp_path, crash):
    mark = str(tmp_path / "mark")
    words = (
        "--hostfile",
        str(hosts.file),
        "--use_deepspeed",
        script(tmp_path, ALL_REDUCE),
        "--device",
        "cpu",
        mark,
    )
    changes = {"CRASH": "1"} if crash else {}
    if crash:  # pdsh carries no variables but those that DeepSpeed or we name
        words = (
            *words[:3],
            script(tmp_path, f"import os\nos.environ['CRASH'] = '1'\n{ALL_REDUCE}"),
            *words[4:],
        )
    done = hosts.run(hosts.names[0], *GAUDI_SPAWN, *words, "100% 'b;$c", **changes)
    assert_met(hosts, done.stdout)
    assert done.stdout.count('"100% \'b;$c"]') == 2
    if crash:
        assert done.stderr.rpartition("\n\n")[2].startswith(f"rank 1 on {hosts.names[1]} failed first")
    assert (done.returncode != 0) is crash, done.stderr
    assert_all_end(mark)
