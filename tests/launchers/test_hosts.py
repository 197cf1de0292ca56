"""Host files, places in a cluster, addresses."""

import re
import socket

import pytest

from launchers import LaunchError, parse_hostfile, placement
from launchers.hosts import (
    Host,
    Machines,
    first_of_nodelist,
    free_port,
    is_this_machine,
    parse_machines,
    rank_of_this_machine,
    read_hostfile,
)


def test_hostfile_keeps_order_slots_and_ignores_comments():
    text = "# our machines\nalpha slots=8\n\n  beta   slots=4  # the small one\n10.0.0.7\n"
    assert parse_hostfile(text, "hosts") == Machines(3, (Host("alpha", 8), Host("beta", 4), Host("10.0.0.7")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha\nbeta slots=x\n", "hosts.txt:2: found 'beta slots=x'"),
        ("alpha slots=0\n", "hosts.txt:1: found 'alpha slots=0'"),
        ("alpha 8\n", "hosts.txt:1: found 'alpha 8'"),
        ("alpha slots=8 max_slots=9\n", "hosts.txt:1: found"),
        ("alpha\n\nalpha\n", "hosts.txt:3: host 'alpha' is named twice"),
        ("# nothing\n", "hosts.txt: names no host"),
    ],
)
def test_bad_hostfile_line_is_named(text, message):
    with pytest.raises(LaunchError, match=re.escape(message)):
        parse_hostfile(text, "hosts.txt")


def test_missing_hostfile_is_one_line(tmp_path):
    with pytest.raises(LaunchError, match=r"--hostfile .*none\.txt: No such file"):
        read_hostfile(str(tmp_path / "none.txt"))


def test_machines_are_a_number_or_names():
    assert parse_machines("3") == Machines(3)
    assert parse_machines("alpha, beta") == Machines(2, (Host("alpha"), Host("beta")))
    for bad in ("0", "alpha,,beta", "alpha,alpha"):
        with pytest.raises(LaunchError, match="--machines"):
            parse_machines(bad)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[003-006,9],cpu1", "gpu003"),
        ("gpu7", "gpu7"),
        ("a,b", "a"),
        ("n[1,3]-ib", "n1-ib"),
        ("rack-2-[11-12]", "rack-2-11"),
        ("", None),
    ],
)
def test_first_node_of_slurms_compact_list(nodes, first):
    assert first_of_nodelist(nodes) == first


def test_a_process_started_alone_has_no_placement():
    assert placement({}) is None
    assert placement({"SLURM_NNODES": "4", "SLURM_NODEID": "0"}) is None  # an sbatch script, outside srun


def test_this_machine_is_found_among_hosts_by_name_and_by_address():
    assert is_this_machine(socket.gethostname())
    assert is_this_machine("127.0.0.1")
    assert not is_this_machine("255.255.255.254")  # in no network (RFC 1112, class E): nobody's
    assert not is_this_machine("no-such-host.invalid")
    assert rank_of_this_machine(Machines(2, (Host("no-such-host.invalid"), Host("127.0.0.1")))) == 1
    assert rank_of_this_machine(Machines(2)) is None


def test_a_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
