"""torch.compile(backend="hpu_backend"): the same numbers as eager, in eager mode of the device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


def test_torch_finds_the_backend_by_its_name():
    assert "hpu_backend" in torch._dynamo.list_backends(exclude_tags=())


def test_importing_the_plugin_does_not_import_the_compiler(run_python):
    done = run_python("import sys, habana_frameworks.torch; print('torch._dynamo' in sys.modules)")
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_model_trains_like_the_eager_one(dynamic):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)
    ).to("hpu")
    compiled = torch.compile(net, backend="hpu_backend", dynamic=dynamic)
    for rows in (3, 5, 3):
        x = torch.randn(rows, 4, device="hpu")
        losses, gradients = [], []
        for module in (net, compiled):
            net.zero_grad()
            loss = module(x).pow(2).mean()
            loss.backward()
            losses.append(loss.detach())
            gradients.append([parameter.grad.clone() for parameter in net.parameters()])
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(gradients[0], gradients[1])


def test_attention_on_transposed_heads_compiles():
    """The traced strides must be the ones the device gives: PyTorch assumes contiguous results for an HPU."""
    x = torch.randn(2, 5, 4, 8, device="hpu", requires_grad=True)

    def attend(x: torch.Tensor) -> torch.Tensor:
        heads = x.transpose(1, 2)
        return (
            F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            .transpose(1, 2)
            .reshape(2, 5, 32)
        )

    wanted = attend(x)
    got = torch.compile(attend, backend="hpu_backend")(x)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (got, wanted)))


def test_options_of_the_real_backend_are_accepted():
    compiled = torch.compile(lambda x: x + 1, backend="hpu_backend", options={"keep_input_mutations": True})
    assert compiled(torch.ones(2, device="hpu")).tolist() == [2.0, 2.0]
