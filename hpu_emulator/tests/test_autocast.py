"""torch.autocast("hpu") follows PyTorch's own operator lists."""

from __future__ import annotations

import torch
from torch import nn


def test_matrix_products_run_in_bfloat16_and_sums_in_float32() -> None:
    a = torch.randn(4, 4, device="hpu")
    with torch.autocast("hpu", dtype=torch.bfloat16):
        product = a @ a
        assert product.dtype == torch.bfloat16
        assert nn.functional.linear(a, a).dtype == torch.bfloat16
        assert product.softmax(-1).dtype == torch.float32
        assert product.sum().dtype == torch.float32
        assert nn.functional.layer_norm(product, (4,)).dtype == torch.float32
        assert (product + a).dtype == torch.float32
        with torch.autocast("hpu", enabled=False):
            assert (a @ a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32


def test_equals_autocast_of_the_cpu_within_bfloat16() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
    with torch.autocast("hpu", dtype=torch.bfloat16):
        found = model.to("hpu")(x.to("hpu"))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.cpu(), expected)


def test_gradients_are_in_the_parameters_dtype() -> None:
    layer = nn.Linear(4, 4, device="hpu")
    with torch.autocast("hpu", dtype=torch.bfloat16):
        loss = layer(torch.randn(2, 4, device="hpu")).float().pow(2).mean()
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_the_other_names_of_autocast() -> None:
    assert not torch.hpu.is_autocast_hpu_enabled()
    with torch.autocast("hpu", dtype=torch.bfloat16):
        assert torch.hpu.is_autocast_hpu_enabled()
        assert torch.hpu.get_autocast_hpu_dtype() == torch.bfloat16
    with torch.hpu.amp.autocast():
        assert (torch.ones(2, 2, device="hpu") @ torch.ones(2, 2, device="hpu")).dtype == torch.bfloat16


def test_the_autocast_of_the_cpu_leaves_the_device_alone() -> None:
    a = torch.ones(2, 2, device="hpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.float32
