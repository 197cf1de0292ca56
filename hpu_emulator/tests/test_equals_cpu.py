"""The same inputs on the CPU and on the device give the same values and the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

Function = Callable[..., object]

# Name -> shapes of the float inputs, function of them.
CASES: dict[str, tuple[tuple[tuple[int, ...], ...], Function]] = {
    # element by element, with broadcasting and type promotion
    "arithmetic": (((3, 4), (4,)), lambda a, b: (a + b * 2 - a / (b.abs() + 1)) ** 2),
    "comparison": (
        ((3, 4), (3, 4)),
        lambda a, b: torch.where(a > b, a, b) + a.clamp(-1, 1) + torch.maximum(a, b),
    ),
    "transcendental": (
        ((8,),),
        lambda a: a.exp() + a.sin() + a.tanh() + a.sigmoid() + a.abs().add(1).log().sqrt(),
    ),
    "promotion": (((4,),), lambda a: a.bfloat16() + a.double() + torch.arange(4, device=a.device)),
    "rounding": (((9,),), lambda a: (a * 3).round() + a.floor() + a.fmod(0.7) + torch.remainder(a, 0.3)),
    "addcmul": (((4,), (4,), (4,)), lambda a, b, c: torch.addcmul(a, b, c, value=2) + torch.lerp(a, b, 0.3)),
    # in place and through views
    "in place": (((3, 4),), lambda a: a.clone().add_(1).mul_(a).clamp_(min=0).masked_fill_(a > 1, 0.5)),
    "view writes": (((4, 4),), lambda a: _write_diagonal(a.clone())),
    "views": (
        ((2, 3, 4),),
        lambda a: (a.transpose(0, 2).reshape(4, 6), a[:, 1:, ::2], a.unfold(2, 2, 1), a.movedim(0, 1)),
    ),
    "expand and repeat": (
        ((3, 1),),
        lambda a: (a.expand(3, 4), a.repeat(2, 2), a.repeat_interleave(2, 0), a.tile(2)),
    ),
    "split and join": (
        ((6, 4),),
        lambda a: (*a.split(2), *a.chunk(3, 1), torch.cat([a, a], 1), torch.stack([a, a])),
    ),
    "padding and rolling": (
        ((2, 4),),
        lambda a: (F.pad(a, (1, 2)), a.roll(1, 0), a.flip(1), a.tril(), a.triu(1)),
    ),
    # indices
    "indexing": (((5, 4),), lambda a: (a[[0, 2]], a[a > 0], a[..., None, 1], a[1:3, [0, 1]])),
    "index writes": (((5, 4),), lambda a: _write_indices(a.clone())),
    "gather and scatter": (((4, 4),), lambda a: _gather_scatter(a)),
    "embedding": (
        ((7, 3),),
        lambda a: F.embedding(torch.tensor([[0, 6], [3, 3]], device=a.device), a, padding_idx=3),
    ),
    # reductions
    "reductions": (
        ((3, 4),),
        lambda a: (a.sum(), a.mean(1), a.var(0), a.std(), a.norm(), a.prod(1), a.logsumexp(0)),
    ),
    "extrema": (
        ((3, 4),),
        lambda a: (a.max(), *a.max(1), a.amin(0), a.argmax(1), *a.topk(2), *a.sort(1), a.median()),
    ),
    "scans": (((3, 4),), lambda a: (a.cumsum(1), a.cumprod(0), *a.cummax(1), a.diff(), a.logcumsumexp(0))),
    "tests": (
        ((3, 4),),
        lambda a: ((a > 0).any(), (a > 0).all(1), a.isnan(), a.isfinite(), a.count_nonzero()),
    ),
    "norms": (((3, 4),), lambda a: (torch.linalg.vector_norm(a), F.normalize(a), torch.cdist(a, a + 1))),
    # algebra
    "products": (
        ((3, 4), (4, 5)),
        lambda a, b: (a @ b, torch.einsum("ij,jk->k", a, b), torch.outer(a[0], b[:, 0])),
    ),
    "batched products": (
        ((2, 3, 4), (2, 4, 5)),
        lambda a, b: (a @ b, torch.baddbmm(a @ b, a, b), torch.bmm(a, b)),
    ),
    "decompositions": (
        ((4, 4),),
        lambda a: (torch.linalg.inv(a + 5 * _eye(a)), torch.linalg.det(a), _cholesky(a)),
    ),
    # networks
    "linear": (((2, 4), (3, 4), (3,)), F.linear),
    "activations": (
        ((3, 4),),
        lambda a: (F.relu(a), F.gelu(a), F.gelu(a, approximate="tanh"), F.silu(a), F.mish(a), F.elu(a)),
    ),
    "softmax": (((3, 4),), lambda a: (a.softmax(-1), a.log_softmax(0), F.softplus(a), F.logsigmoid(a))),
    "normalisation": (
        ((2, 6, 4), (4,), (4,)),
        lambda a, w, b: (F.layer_norm(a, (4,), w, b), F.rms_norm(a, (4,), w)),
    ),
    "batch and group norm": (
        ((2, 6, 4),),
        lambda a: (F.batch_norm(a, None, None, training=True), F.group_norm(a, 3)),
    ),
    "attention": (
        ((1, 2, 5, 4),) * 3,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    "grouped attention": (
        ((1, 4, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4)),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    ),
    "convolutions": (
        ((1, 2, 6, 6), (4, 2, 3, 3), (4,)),
        lambda x, w, b: (F.conv2d(x, w, b, padding=1), F.conv2d(x, w, b, stride=2, dilation=2)),
    ),
    "transposed convolution": (((1, 4, 5), (4, 2, 3)), lambda x, w: F.conv_transpose1d(x, w, stride=2)),
    "pooling": (
        ((1, 2, 6, 6),),
        lambda a: (F.max_pool2d(a, 2), F.avg_pool2d(a, 2), F.adaptive_avg_pool2d(a, 2)),
    ),
    "interpolation": (
        ((1, 2, 4, 4),),
        lambda a: (F.interpolate(a, scale_factor=2), F.interpolate(a, size=3, mode="bilinear")),
    ),
    # losses
    "cross entropy": (
        ((4, 5),),
        lambda a: F.cross_entropy(a, torch.tensor([0, 4, -100, 2], device=a.device)),
    ),
    "smoothed loss": (
        ((4, 5),),
        lambda a: F.cross_entropy(a, a.detach().argmax(1), label_smoothing=0.1, reduction="none"),
    ),
    "other losses": (
        ((4,), (4,)),
        lambda a, b: (F.mse_loss(a, b), F.smooth_l1_loss(a, b), F.huber_loss(a, b)),
    ),
    "divergences": (
        ((3, 4), (3, 4)),
        lambda a, b: F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean"),
    ),
    "binary loss": (((4,), (4,)), lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid())),
    # chance: the device draws what the CPU draws
    "dropout": (((50,),), lambda a: (F.dropout(a, 0.3), torch.native_dropout(a, 0.5, True)[0])),
    "complex": (((4, 2),), lambda a: (torch.view_as_complex(a) * torch.view_as_complex(a).conj()).real),
    "fourier": (((8,),), lambda a: torch.fft.rfft(a).abs()),
}


def _eye(a: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(a), device=a.device)


def _cholesky(a: torch.Tensor) -> torch.Tensor:
    return torch.linalg.cholesky(a @ a.T + 5 * _eye(a))


def _write_diagonal(a: torch.Tensor) -> torch.Tensor:
    a.diagonal().fill_(2)
    a[1:3, 1:3].t().mul_(3)
    a[:, -1] += 1
    return a


def _write_indices(a: torch.Tensor) -> torch.Tensor:
    index = torch.tensor([0, 2, 2], device=a.device)
    a[a < -1] = 0
    a[index, 1] = 7.0
    a.index_add_(0, index, torch.ones(3, 4, device=a.device))
    a.index_fill_(1, index[:1], 3.0)
    return a.index_put((index,), a[:3], accumulate=True)


def _gather_scatter(a: torch.Tensor) -> tuple[torch.Tensor, ...]:
    index = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], device=a.device)
    zeros = torch.zeros(4, 4, device=a.device)
    return (
        a.gather(0, index),
        zeros.scatter(0, index, a[:2]),
        zeros.scatter_add(0, index, a[:2]),
        zeros.scatter_reduce(0, index, a[:2], "amax"),
        torch.take_along_dim(a, index, 0),
        a.masked_scatter(a > 0, zeros),
    )


def tensors_of(result: object) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)  # type: ignore[call-overload]


def run(
    shapes: tuple[tuple[int, ...], ...], function: Function, device: str, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Values, then gradients of their sum."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype).to(device).requires_grad_() for shape in shapes]
    torch.manual_seed(1)  # drawing the inputs has moved the generator of the CPU only
    values = tensors_of(function(*inputs))
    loss = sum(value.float().sum() for value in values if value.requires_grad)
    gradients: list[torch.Tensor] = []
    if isinstance(loss, torch.Tensor):
        loss.backward()
        gradients = [tensor.grad for tensor in inputs if tensor.grad is not None]
    assert all(tensor.device.type == device for tensor in values + gradients)
    return [tensor.detach().cpu() for tensor in values + gradients]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    found = run(*CASES[name], "hpu", torch.float32)
    expected = run(*CASES[name], "cpu", torch.float32)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "name", ["arithmetic", "products", "linear", "activations", "normalisation", "softmax", "cross entropy"]
)
def test_values_and_gradients_in_bfloat16(name: str) -> None:
    found = run(*CASES[name], "hpu", torch.bfloat16)
    expected = run(*CASES[name], "cpu", torch.bfloat16)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def small_transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    return nn.Sequential(
        nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 20)
    )


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}], ids=str)
def test_training_with_dropout_gives_the_weights_of_the_cpu(options: dict[str, bool]) -> None:
    weights = []
    for device in ("cpu", "hpu"):
        model = small_transformer().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **options)
        torch.manual_seed(1)
        for _ in range(3):
            tokens = torch.randint(0, 20, (2, 6), device=device)
            F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        weights.append([parameter.detach().cpu() for parameter in model.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_and_packed_sequences(kind: type[nn.Module]) -> None:
    results = []
    for device in ("cpu", "hpu"):
        torch.manual_seed(0)
        network = kind(3, 4, batch_first=True, bidirectional=True).to(device)
        x = torch.randn(2, 5, 3).to(device)
        packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3], batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(network(packed)[0], batch_first=True)
        out.sum().backward()
        results.append([out.detach().cpu(), *(p.grad.cpu() for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
