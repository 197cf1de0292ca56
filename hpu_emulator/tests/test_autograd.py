"""Gradients on the device are PyTorch's own: the same as on the CPU, in every mode of autograd."""

from __future__ import annotations

import pytest
import torch
from conftest import RunPython
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def test_leaf_gradients_land_on_the_device() -> None:
    x = torch.ones(3, device="hpu", requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == "hpu"
    assert x.grad.tolist() == [2, 2, 2]


def test_gradients_flow_across_devices() -> None:
    x = torch.ones(3, requires_grad=True)
    (x.to("hpu") * 2).cpu().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]


def test_second_derivatives() -> None:
    x = torch.tensor([2.0], device="hpu", requires_grad=True)
    (first,) = torch.autograd.grad(x**3, x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (12, 12)


def test_gradcheck_in_double() -> None:
    x = torch.randn(2, 3, dtype=torch.float64, device="hpu", requires_grad=True)
    w = torch.randn(4, 3, dtype=torch.float64, device="hpu", requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: F.gelu(F.linear(x, w)).softmax(-1), (x, w))


def test_writing_to_what_backward_needs_is_caught() -> None:
    x = torch.ones(3, device="hpu", requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_writes_through_views_reach_the_base_gradient() -> None:
    x = torch.ones(4, device="hpu", requires_grad=True)
    y = x * 1
    y[1:3].mul_(5)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 5, 5, 1]


def test_custom_functions_hooks_and_no_grad() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            assert x.device.type == "hpu"
            return grad * 2

    seen = []
    x = torch.ones(2, device="hpu", requires_grad=True)
    x.register_hook(lambda grad: seen.append(grad.device.type))
    Double.apply(x).sum().backward()
    assert seen == ["hpu"]
    with torch.no_grad():
        assert not (x * 2).requires_grad
    with torch.inference_mode():
        assert (x * 2).is_inference()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_replays_dropout(reentrant: bool) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5) * x

    gradients = []
    for use in (False, True):
        torch.manual_seed(3)
        x = torch.ones(64, device="hpu", requires_grad=True)
        y = checkpoint(block, x, use_reentrant=reentrant) if use else block(x)
        y.sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_function_transforms() -> None:
    x = torch.arange(3.0, device="hpu")
    assert torch.func.grad(lambda x: (x**2).sum())(x).tolist() == [0, 2, 4]
    assert torch.vmap(lambda x: x * 2)(x).tolist() == [0, 2, 4]
    assert torch.func.jvp(lambda x: x**2, (x,), (torch.ones_like(x),))[1].tolist() == [0, 2, 4]


def test_frozen_and_shared_parameters() -> None:
    layer = nn.Linear(2, 2, device="hpu")
    layer.weight.requires_grad_(False)
    layer(layer(torch.ones(1, 2, device="hpu"))).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert layer.bias.grad.abs().sum() > 0


def test_aot_autograd_compiles() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu().sum()

    x = torch.randn(8, device="hpu", requires_grad=True)
    torch.compile(function, backend="aot_eager")(x).backward()
    (expected,) = torch.autograd.grad(function(x), x)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)


def test_a_program_that_ends_with_a_backward_ends_cleanly(run_python: RunPython) -> None:
    """With backward in a thread of the engine's own, about half of these aborted while Python shut down."""
    for _ in range(4):
        run_python("""
            import torch
            x = torch.ones(2, device="hpu", requires_grad=True)
            (x * 3).sum().backward()
        """)
