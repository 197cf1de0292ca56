"""Memory: what tensors take is counted, given back, and limited."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from conftest import RunPython
from habana_torch_plugin_emulator import _C, settings

MIB = 2**20


@pytest.fixture
def limited() -> Iterator[int]:
    """The device may use 8 MiB more than it does now; the value is what it uses now."""
    gc.collect()
    stats = _C.memory_stats(0)
    _C.set_limit(0, stats["InUse"] + 8 * MIB)
    yield stats["InUse"]
    _C.set_limit(0, stats["Limit"])


def test_tensors_are_counted_and_given_back() -> None:
    gc.collect()
    before = torch.hpu.memory_stats()
    tensor = torch.empty(MIB, dtype=torch.uint8, device="hpu")
    result = tensor + 1
    view = result[5:]
    assert torch.hpu.memory_allocated() - before["InUse"] == 2 * MIB
    del tensor, result
    assert torch.hpu.memory_allocated() - before["InUse"] == MIB
    del view
    after = torch.hpu.memory_stats()
    assert after["InUse"] == before["InUse"]
    assert after["NumAllocs"] - before["NumAllocs"] == after["NumFrees"] - before["NumFrees"] == 2


def test_peak_is_kept_until_reset() -> None:
    torch.hpu.reset_peak_memory_stats()
    start = torch.hpu.memory_allocated()
    torch.empty(4 * MIB, dtype=torch.uint8, device="hpu")
    assert torch.hpu.max_memory_allocated() == start + 4 * MIB
    assert torch.hpu.memory_allocated() == start
    torch.hpu.reset_peak_memory_stats()
    assert torch.hpu.max_memory_allocated() == start


def test_moving_a_result_from_a_kernel_copies_nothing() -> None:
    """A result is the very memory that the kernel wrote: allocated once, and writable in place."""
    a = torch.ones(MIB, device="hpu")
    torch.hpu.reset_peak_memory_stats()
    start = torch.hpu.memory_allocated()
    b = a * 2
    assert torch.hpu.max_memory_allocated() == start + 4 * MIB
    pointer = b.data_ptr()
    assert b.mul_(2).data_ptr() == pointer
    assert b[0].item() == 4


def test_beyond_the_limit_allocation_raises_out_of_memory(limited: int) -> None:
    kept = torch.empty(6 * MIB, dtype=torch.uint8, device="hpu")
    message = r"HPU out of memory. Tried to allocate 4.00 MiB. hpu:0 has a total capacity of .* of which 2.00 MiB is free"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        torch.empty(4 * MIB, dtype=torch.uint8, device="hpu")
    with pytest.raises(torch.OutOfMemoryError):
        kept + 1
    assert torch.hpu.memory_allocated() == limited + 6 * MIB
    del kept
    assert torch.empty(7 * MIB, dtype=torch.uint8, device="hpu").numel() == 7 * MIB
    assert torch.hpu.mem_get_info()[0] == 8 * MIB
    assert torch.hpu.memory_stats()["NumOOMs"] >= 2


def test_torch_accelerator_sees_the_same_numbers() -> None:
    tensor = torch.empty(MIB, dtype=torch.uint8, device="hpu")
    assert torch.accelerator.memory_allocated() == torch.hpu.memory_allocated() >= tensor.nbytes
    assert torch.accelerator.max_memory_allocated() == torch.hpu.max_memory_allocated()
    assert torch.accelerator.get_memory_info() == torch.hpu.mem_get_info()


@pytest.mark.parametrize(
    ("variables", "limit"),
    [
        ({"HPU_EMULATOR_MEMORY": "32GB"}, 32 * 10**9),
        ({"HPU_EMULATOR_MEMORY": "1000000"}, 10**6),
        ({"HPU_EMULATOR_DEVICE_NAME": "GAUDI3"}, 128 * 10**9),
    ],
)
def test_capacity_is_a_setting(run_python: RunPython, variables: dict[str, str], limit: int) -> None:
    done = run_python("import torch; print(torch.hpu.mem_get_info()[1])", **variables)
    assert int(done.stdout) == limit


def test_sizes_are_read_with_their_units() -> None:
    assert settings.parse_bytes("512MiB") == 512 * MIB
    assert settings.parse_bytes("1.5 g") == 3 * 2**29
    assert settings.parse_bytes("7") == 7
    for text in ("", "GB", "12 parsec", "-1"):
        with pytest.raises(ValueError, match="expected a number of bytes"):
            settings.parse_bytes(text)


def test_pinned_memory_is_recognised() -> None:
    pinned = torch.ones(3).pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert not torch.ones(3).is_pinned()
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert torch.equal(pinned.to("hpu", non_blocking=True).cpu(), torch.ones(3))
