"""The `hpu` device: tensors on it, the torch.hpu module, streams, errors that hardware would give as well."""

from __future__ import annotations

import copy
import pickle
import time

import pytest
import torch
from conftest import RunPython
from torch import nn


def test_importing_torch_is_enough(run_python: RunPython) -> None:
    done = run_python("""
        import torch
        tensor = torch.empty(2, device="hpu")
        assert str(tensor.device) == "hpu:0" and tensor.is_hpu and not torch.empty(2).is_hpu
        assert torch.accelerator.current_accelerator() == torch.device("hpu")
        assert torch.get_device_module("hpu") is torch.hpu and torch.hpu.is_available()
    """)
    assert done.stderr == ""


def test_autoload_can_be_switched_off_for_one_process(run_python: RunPython) -> None:
    run_python(
        """
        import torch
        assert not hasattr(torch, "hpu")
        assert torch.accelerator.current_accelerator() is None
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )


def test_the_package_may_be_imported_before_torch(run_python: RunPython) -> None:
    run_python("""
        import habana_torch_plugin_emulator
        import torch
        habana_torch_plugin_emulator.autoload()
        assert habana_torch_plugin_emulator.is_loaded() and torch.ones(2, device="hpu").sum() == 2
    """)


def test_first_use_says_that_this_is_an_emulation_once(run_python: RunPython) -> None:
    code = """
        import torch
        torch.ones(2, device="hpu")
        torch.ones(2, device="hpu")
    """
    done = run_python(code, HPU_EMULATOR_QUIET=None)
    assert done.stderr.count("emulated on CPU memory") == 1
    assert done.stdout == ""


def test_it_refuses_to_stand_in_for_real_hardware_software(run_python: RunPython) -> None:
    done = run_python("""
        import importlib.metadata
        found = importlib.metadata.version
        importlib.metadata.version = lambda name: "1.24.0" if name == "habana-torch-plugin" else found(name)
        try:
            import torch
        except RuntimeError as error:
            assert "the real HPU software" in str(error.__cause__)
            print("refused")
    """)
    assert done.stdout == "refused\n"


def test_several_devices_keep_tensors_generators_and_backward_apart(run_python: RunPython) -> None:
    run_python(
        """
        import torch
        assert torch.hpu.device_count() == 2 == torch.accelerator.device_count()
        a, b = torch.ones(3, device="hpu:0"), torch.ones(3, device="hpu:1")
        try:
            a + b
        except RuntimeError as error:
            assert "hpu:0 and hpu:1" in str(error), error
        else:
            raise AssertionError("tensors of two devices were added")
        assert (a + b.to("hpu:0")).device.index == 0
        with torch.hpu.device(1):
            assert torch.hpu.current_device() == 1 == torch.ones(1, device="hpu").get_device()
        assert torch.hpu.current_device() == 0
        x = torch.ones(2, device="hpu:1", requires_grad=True)
        (x.to("hpu:0") * 3).sum().backward()
        assert x.grad.device.index == 1 and x.grad.tolist() == [3, 3]
        torch.hpu.set_device("hpu:1")
        assert torch.zeros(4, device="hpu").device.index == 1
        assert torch.hpu.memory_allocated(1) >= 16 and torch.hpu.memory_allocated(0) >= 12
        """,
        HPU_EMULATOR_DEVICES="2",
    )


def test_as_many_devices_as_local_processes(run_python: RunPython) -> None:
    code = "import torch; assert torch.hpu.device_count() == 3"
    run_python(code, HPU_EMULATOR_DEVICES=None, LOCAL_WORLD_SIZE="3")
    run_python(code, HPU_EMULATOR_DEVICES=None, LOCAL_WORLD_SIZE=None, OMPI_COMM_WORLD_LOCAL_SIZE="3")


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"Invalid device index 9: there are 1 HPU"):
        torch.ones(1, device="hpu:9")


def test_a_wrong_setting_is_named(run_python: RunPython) -> None:
    done = run_python("import torch", check=False, HPU_EMULATOR_MEMORY="lots")
    assert done.returncode != 0
    assert "HPU_EMULATOR_MEMORY: expected a number of bytes such as 96GB" in done.stderr


def test_views_share_memory_and_know_their_base() -> None:
    base = torch.arange(12.0, device="hpu").view(3, 4)
    for view in (
        base[1:],
        base.t(),
        base.reshape(2, 6),
        base.unfold(1, 2, 2),
        base.expand(2, 3, 4),
        base[:, ::2],
    ):
        assert view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
        assert view._base is base._base or view._base is base
    base[1:].t()[0] = -1
    assert base.tolist() == [[0, 1, 2, 3], [-1, 5, 6, 7], [-1, 9, 10, 11]]


def test_in_place_operators_return_the_same_tensor() -> None:
    tensor = torch.ones(3, device="hpu")
    version = tensor._version
    assert tensor.add_(1) is tensor
    assert tensor._version == version + 1
    out = torch.empty(0, device="hpu")
    assert torch.add(tensor, 1, out=out) is out
    assert out.tolist() == [3, 3, 3]


def test_out_tensors_are_resized_with_their_storage() -> None:
    out = torch.empty(0, device="hpu")
    other = torch.ones(5, device="hpu")
    torch.cat([other, other], out=out)
    assert out.shape == (10,)
    assert out.untyped_storage().nbytes() == 40
    assert torch.equal(out, torch.ones(10, device="hpu"))


def test_storages_can_be_freed_and_filled_again() -> None:
    tensor = torch.ones(1024, device="hpu")
    before = torch.hpu.memory_allocated()
    tensor.untyped_storage().resize_(0)
    assert before - torch.hpu.memory_allocated() == 4096
    tensor.untyped_storage().resize_(4096)
    tensor.copy_(torch.arange(1024.0))
    assert tensor[-1].item() == 1023


def test_partial_overlap_is_refused_as_on_the_cpu() -> None:
    tensor = torch.arange(4.0, device="hpu")
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        tensor[1:].add_(tensor[:-1])


def test_copies_and_pickles_stay_on_the_device() -> None:
    model = nn.Linear(2, 2).to("hpu")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.weight.device.type == "hpu"
        assert torch.equal(twin.weight, model.weight)
        assert twin.weight.data_ptr() != model.weight.data_ptr()


def test_names_on_tensors_and_modules() -> None:
    assert torch.ones(2).hpu().device == torch.device("hpu", 0)
    model = nn.Linear(2, 2)
    assert model.hpu() is model
    assert model.weight.is_hpu
    assert not model.cpu().weight.is_hpu


def test_mixing_with_cpu_tensors_raises_as_on_hardware() -> None:
    hpu, cpu = torch.ones(3, device="hpu"), torch.ones(3)
    for operation in (
        lambda: hpu + cpu,
        lambda: cpu + hpu,
        lambda: hpu.add_(cpu),
        lambda: torch.cat([hpu, cpu]),
    ):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            operation()
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        cpu[torch.tensor([0], device="hpu")]
    with pytest.raises(TypeError, match="convert hpu:0 device type tensor to numpy"):
        hpu.numpy()


def test_scalars_and_indices_of_the_cpu_are_taken() -> None:
    hpu = torch.arange(3.0, device="hpu")
    assert (hpu + torch.tensor(1.0)).tolist() == [1, 2, 3]
    assert hpu[torch.tensor([2, 0])].tolist() == [2, 0]


def test_sparse_tensors_are_refused_clearly() -> None:
    with pytest.raises(NotImplementedError, match="holds dense tensors only"):
        torch.eye(2, device="hpu").to_sparse()
    with pytest.raises(NotImplementedError, match="holds dense tensors only"):
        torch.eye(2).to_sparse().to("hpu")


def test_streams_and_events_are_torch_ones() -> None:
    stream = torch.hpu.Stream()
    assert isinstance(stream, torch.Stream)
    default = torch.hpu.default_stream()
    with torch.hpu.stream(stream):
        assert torch.hpu.current_stream() == stream == torch.accelerator.current_stream()
    assert torch.hpu.current_stream() == default
    start, end = torch.hpu.Event(enable_timing=True), torch.hpu.Event(enable_timing=True)
    assert isinstance(start, torch.Event)
    start.record()
    time.sleep(0.01)
    end.record(stream)
    stream.wait_event(end)
    stream.wait_stream(default)
    end.synchronize()
    assert end.query()
    assert 9 < start.elapsed_time(end) < 1000
    torch.ones(2, device="hpu").record_stream(stream)


def test_what_libraries_ask_of_torch_hpu() -> None:
    torch.hpu.synchronize()
    torch.hpu.empty_cache()
    assert torch.hpu.get_device_name() in ("GAUDI", "GAUDI2", "GAUDI3")
    assert torch.hpu.get_device_properties(0).total_memory == torch.hpu.mem_get_info()[1]
    assert torch.hpu.is_bf16_supported()
    assert torch.hpu.is_initialized()
    assert torch.hpu.current_device() == 0
    with torch.hpu.device_of(torch.ones(1)):
        assert torch.hpu.current_device() == 0


def test_default_device_and_factories() -> None:
    with torch.device("hpu"):
        made = [
            torch.ones(2),
            torch.arange(3),
            torch.randperm(4),
            torch.tensor([1, 2]),
            torch.full((2,), 3.0),
        ]
        made += [torch.eye(2), torch.linspace(0, 1, 3), torch.zeros(2).new_zeros(3), nn.Linear(2, 2).weight]
    assert all(tensor.device == torch.device("hpu", 0) for tensor in made)
