"""HPU_EMULATOR_STRICT: what a Gaudi would refuse, or leave to the host, raises; everything else still runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import RunPython
from habana_torch_plugin_emulator import _C, device, settings
from torch import nn


@pytest.fixture
def strict() -> Iterator[None]:
    before = _C.strict()
    device.set_strict(set(settings.STRICT_KINDS))
    yield
    _C.set_strict(before)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64])
def test_arithmetic_in_absent_dtypes_raises(dtype: torch.dtype) -> None:
    tensor = torch.ones(3).to(dtype).to("hpu")
    with pytest.raises(RuntimeError, match=r"strict dtypes: mul.Tensor on a .* HPU tensor"):
        tensor * tensor
    assert tensor.to(torch.complex64).cpu()[0] == 1  # moving and converting is no arithmetic


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int32])
def test_arithmetic_in_its_dtypes_runs(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, dtype=dtype, device="hpu")
    assert (tensor * tensor + 1).sum().item() == 6


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "operation",
    [
        torch.nonzero,
        torch.unique,
        lambda x: x[x > 0],
        torch.linalg.inv,
        lambda x: torch.masked_select(x, x > 0),
    ],
    ids=["nonzero", "unique", "boolean index", "inv", "masked_select"],
)
def test_operators_left_to_the_host_raise(operation) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotImplementedError, match="strict fallback_ops"):
        operation(torch.eye(2, device="hpu"))


@pytest.mark.usefixtures("strict")
def test_cpu_tensors_among_hpu_tensors_raise() -> None:
    tensor = torch.ones(3, device="hpu")
    with pytest.raises(RuntimeError, match=r"strict devices: argument other of add.Tensor"):
        tensor + torch.tensor(1.0)
    with pytest.raises(RuntimeError, match=r"strict devices: argument indices of index.Tensor"):
        tensor[torch.tensor([0])]
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        torch.ones(3)[torch.tensor([0], device="hpu")]


@pytest.mark.usefixtures("strict")
def test_python_numbers_are_constants() -> None:
    tensor = torch.ones(3, device="hpu")
    assert (1 - (tensor * 2.0 + 1) / 3).tolist() == [0, 0, 0]
    assert torch.where(tensor > 0, tensor, 0.0).tolist() == [1, 1, 1]
    tensor[0] = 5
    tensor.masked_fill_(tensor > 4, -1.0)
    assert tensor.tolist() == [-1, 1, 1]


@pytest.mark.usefixtures("strict")
def test_training_in_bfloat16_autocast_passes_all_checks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(16, 8), nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 16)
    ).hpu()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens = torch.randint(0, 16, (2, 5)).to("hpu")
    losses = []
    for _ in range(5):
        with torch.autocast("hpu", dtype=torch.bfloat16):
            logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_kinds_are_independent(run_python: RunPython) -> None:
    run_python(
        """
        import torch
        x = torch.ones(3, device="hpu")
        assert (x.double() * 2).sum() == 6 and x.nonzero().numel() == 3
        try:
            x + torch.tensor(1.0)
        except RuntimeError as error:
            assert "strict devices" in str(error)
        else:
            raise AssertionError("no error")
        """,
        HPU_EMULATOR_STRICT="devices",
    )
    done = run_python("import torch", check=False, HPU_EMULATOR_STRICT="dtype")
    assert (
        "HPU_EMULATOR_STRICT: unknown kind(s) ['dtype']; choose from dtypes, fallback_ops, devices"
        in done.stderr
    )


def test_cpu_tensors_can_be_tolerated(run_python: RunPython) -> None:
    run_python(
        """
        import torch
        x, y = torch.ones(3, device="hpu"), torch.ones(3)
        assert (x + y).tolist() == [2, 2, 2] == (y + x).tolist() and (y + x).is_hpu
        try:
            y.add_(x)
        except RuntimeError as error:
            assert "same device" in str(error)
        else:
            raise AssertionError("wrote to a CPU tensor")
        """,
        HPU_EMULATOR_TOLERATE_CPU_TENSORS="1",
    )
