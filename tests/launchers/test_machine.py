"""What a machine has, read from folders laid out like other machines' /proc, /sys and /dev."""

from pathlib import Path

import pytest

from launchers.machine import (
    NvidiaGpu,
    cpu_description,
    cpu_quota,
    gaudis,
    memory_limit_bytes,
    nvidia_gpus,
    parse_nvidia_smi,
    physical_cores,
    usable_cores,
    visible_gpus,
)

TWO_GPUS = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)
"""
SLICED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 1g.10gb     Device  1: (UUID: MIG-2222)
"""


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_quota_above_the_process_counts_in_cgroup_v2(tmp_path):
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/jobs/mine\n",
            "sys/fs/cgroup/jobs/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n",
            "sys/fs/cgroup/cpu.max": "800000 100000\n",
        },
    )
    assert cpu_quota(root) == 2.5
    assert usable_cores(16, 2.5) == (2, "a cgroup quota of 2.5 out of 16 cores")


def test_quota_in_cgroup_v1_and_its_absence(tmp_path):
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",  # in a container the mount's root is its own cgroup
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    root = lay_out(tmp_path, files)
    assert cpu_quota(root) == 4
    lay_out(tmp_path, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"})
    assert cpu_quota(root) is None
    assert usable_cores(16, None) == (16, "16 cores")


def test_half_a_core_is_still_one(tmp_path):
    assert usable_cores(16, 0.5)[0] == 1


def test_hyperthreads_of_a_core_count_once(tmp_path):
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    root = lay_out(
        tmp_path,
        {
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text
            for cpu, text in siblings.items()
        },
    )
    assert physical_cores({0, 1, 2, 3}, root) == 2
    assert physical_cores({0, 2}, root) == 1
    assert physical_cores({0, 1, 2, 3}, tmp_path / "nothing here") == 4


def test_memory_limit_only_where_it_binds(tmp_path):
    root = lay_out(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       1048576 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": str(2**29),
        },
    )
    assert memory_limit_bytes(root) == 2**29
    lay_out(tmp_path, {"sys/fs/cgroup/memory.max": str(2**62)})
    assert memory_limit_bytes(root) is None


def test_cpu_description_names_what_helps_training(tmp_path):
    cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n"
    root = lay_out(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert cpu_description(root) == ("Some CPU @ 2.0GHz", ("avx2", "amx_tile", "amx_bf16"))


@pytest.mark.parametrize(
    ("text", "listed", "uuids"),
    [
        (TWO_GPUS, None, ["GPU-aaaa-1", "GPU-bbbb-2"]),
        (TWO_GPUS, "", []),
        (TWO_GPUS, "-1", []),
        (TWO_GPUS, "1", ["GPU-bbbb-2"]),
        (TWO_GPUS, "1,0", ["GPU-bbbb-2", "GPU-aaaa-1"]),
        (TWO_GPUS, "0,7,1", ["GPU-aaaa-1"]),  # CUDA stops at the first entry it does not know
        (TWO_GPUS, "GPU-bb", ["GPU-bbbb-2"]),
        (SLICED, None, ["MIG-1111"]),  # CUDA shows a process one slice
        (SLICED, "MIG-2222", ["MIG-2222"]),
    ],
)
def test_visible_gpus_are_those_cuda_shows(text, listed, uuids):
    assert [gpu.uuid for gpu in visible_gpus(parse_nvidia_smi(text), listed)] == uuids


def test_gpu_names_are_read():
    assert parse_nvidia_smi(TWO_GPUS)[0] == NvidiaGpu("NVIDIA A100-SXM4-40GB", "GPU-aaaa-1")


def test_device_nodes_count_where_nvidia_smi_is_missing(tmp_path):
    nodes = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia0-caps")
    root = lay_out(tmp_path, {f"dev/{name}": "" for name in nodes})
    assert len(nvidia_gpus({"PATH": str(tmp_path)}, root)) == 2
    assert len(nvidia_gpus({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1"}, root)) == 1


def test_nvidia_smi_is_asked_where_it_is_installed(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && printf '{TWO_GPUS}'\n")
    program.chmod(0o755)
    assert len(nvidia_gpus({"PATH": str(tmp_path)}, tmp_path)) == 2


def test_only_habanas_accelerators_are_gaudis(tmp_path):
    root = lay_out(
        tmp_path,
        {
            **{f"dev/accel/accel{index}": "" for index in range(3)},
            "dev/accel/accel_controlD0": "",
            "sys/class/accel/accel0/device/vendor": "0x1da3\n",
            "sys/class/accel/accel1/device/vendor": "0x1da3\n",
            "sys/class/accel/accel2/device/vendor": "0x8086\n",  # a laptop's NPU
        },
    )
    environ = {"PATH": str(tmp_path)}
    assert gaudis(environ, root) == 2
    assert gaudis({**environ, "HABANA_VISIBLE_DEVICES": "all"}, root) == 2
    assert gaudis({**environ, "HABANA_VISIBLE_MODULES": "1"}, root) == 1
