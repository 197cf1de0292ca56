"""What leaves the device and comes back: checkpoints, safetensors, worker processes of a DataLoader."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path

import pytest
import torch
from conftest import RunPython
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def test_checkpoints_carry_the_device(tmp_path: Path) -> None:
    tensor = torch.arange(4.0, device="hpu")
    torch.save({"tensor": tensor, "view": tensor[1:]}, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt")
    assert loaded["tensor"].device == torch.device("hpu", 0)
    assert torch.equal(loaded["tensor"], tensor)
    assert loaded["view"].untyped_storage().data_ptr() == loaded["tensor"].untyped_storage().data_ptr()


@pytest.mark.parametrize("location", ["cpu", "hpu", "hpu:0", {"hpu:0": "cpu"}, lambda storage, _: storage])
def test_map_location(tmp_path: Path, location: object) -> None:
    torch.save(torch.ones(2, device="hpu"), tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", map_location=location)
    expected = "hpu" if location in ("hpu", "hpu:0") else "cpu"
    assert loaded.device.type == expected
    assert loaded.tolist() == [1, 1]


def test_cpu_checkpoints_load_onto_the_device() -> None:
    buffer = io.BytesIO()
    torch.save(torch.ones(2, dtype=torch.bfloat16), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, map_location="hpu")
    assert loaded.device.type == "hpu"
    assert loaded.dtype == torch.bfloat16


def test_without_the_emulator_the_message_says_how_to_load(tmp_path: Path, run_python: RunPython) -> None:
    torch.save(torch.ones(2, device="hpu"), tmp_path / "a.pt")
    run_python(
        f"""
        import torch
        try:
            torch.load({str(tmp_path / "a.pt")!r})
        except RuntimeError as error:
            assert "map_location=torch.device('cpu')" in str(error), error
        else:
            raise AssertionError("an HPU tensor was loaded where there is no HPU")
        assert torch.load({str(tmp_path / "a.pt")!r}, map_location="cpu").tolist() == [1, 1]
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )


def test_optimizer_state_resumes_on_the_device(tmp_path: Path) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            model(torch.ones(1, 3, device="hpu")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = nn.Linear(3, 3, device="hpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    steps(model, optimizer, 2)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "a.pt")
    steps(model, optimizer, 2)
    twin = nn.Linear(3, 3, device="hpu")
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.1)
    weights, state = torch.load(tmp_path / "a.pt")
    twin.load_state_dict(weights)
    twin_optimizer.load_state_dict(state)
    steps(twin, twin_optimizer, 2)
    assert torch.equal(twin.weight, model.weight)


def test_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(3.0, device="hpu"),
        "b": torch.ones(2, 2, dtype=torch.bfloat16, device="hpu"),
    }
    save_file(tensors, str(tmp_path / "a.safetensors"))
    for device in ("cpu", "hpu"):
        loaded = load_file(str(tmp_path / "a.safetensors"), device=device)
        for name, tensor in tensors.items():
            assert loaded[name].device.type == device
            assert torch.equal(loaded[name].cpu(), tensor.cpu())


def test_safetensors_of_a_model_with_tied_weights(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to("hpu")
        model[1].weight = model[0].weight
        return model

    model, twin = tied(), tied()
    save_model(model, str(tmp_path / "m.safetensors"))
    load_model(twin, str(tmp_path / "m.safetensors"))
    assert torch.equal(model[1].weight, twin[1].weight)
    assert twin[1].weight.device.type == "hpu"


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("pin", [False, True])
def test_dataloader_workers(start: str, pin: bool) -> None:
    torch.ones(1, device="hpu")  # the device is in use before the workers start
    data = TensorDataset(torch.arange(12.0).view(6, 2))
    loader = DataLoader(
        data, batch_size=2, num_workers=1, pin_memory=pin, timeout=60, multiprocessing_context=multiprocessing.get_context(start)
    )  # fmt: skip
    batches = []
    for (batch,) in loader:
        assert batch.is_pinned() is pin
        batches.append(batch.to("hpu", non_blocking=True))
    assert torch.equal(torch.cat(batches).cpu(), data.tensors[0])


def test_a_forked_process_may_use_the_device(run_python: RunPython) -> None:
    done = run_python("""
        import os, torch
        x = torch.ones(3, device="hpu")
        child = os.fork()
        if child == 0:
            y = torch.full((3,), 2.0, device="hpu", requires_grad=True)
            (x * y).sum().backward()
            os._exit(0 if y.grad.tolist() == [1, 1, 1] else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert done.stdout == "0\n"
