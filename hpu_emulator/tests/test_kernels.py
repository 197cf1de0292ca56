"""The fused kernels against the arithmetic they stand for, written out or taken from torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from habana_frameworks.torch.hpex.kernels import (
    CTCLoss,
    Fp8Ops,
    FusedSDPA,
    RotaryPosEmbeddingHelperV1,
    RotaryPosEmbeddingHelperV2,
    RotaryPosEmbeddingHelperV3,
    RotaryPosEmbeddingMode,
    apply_rotary_pos_emb,
)
from habana_frameworks.torch.hpex.normalization import FusedClipNorm, FusedRMSNorm
from habana_frameworks.torch.hpex.optimizers import FusedAdamW
from habana_frameworks.torch.hpu import sdp_kernel

B, H, G, L, D = 2, 4, 2, 5, 8


def qkv(generator: torch.Generator, key_length: int = L, heads: int = G) -> list[torch.Tensor]:
    shapes = [(B, H, L, D), (B, heads, key_length, D), (B, heads, key_length, D)]
    return [torch.randn(shape, generator=generator).to("hpu").requires_grad_() for shape in shapes]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(output.sin().sum(), inputs))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("heads", [H, G, 1])
@pytest.mark.parametrize("mask", ["none", "causal", "float", "bool"])
def test_attention_and_its_gradients_equal_torchs(generator, mask, heads, recompute):
    inputs = qkv(generator, heads=heads)
    attn_mask = None
    if mask == "float":
        attn_mask = torch.randn(B, 1, L, L, generator=generator).to("hpu").requires_grad_()
        inputs.append(attn_mask)
    elif mask == "bool":
        attn_mask = torch.ones(L, L, dtype=torch.bool).tril().to("hpu")
    causal = mask == "causal"
    ours = FusedSDPA.apply(*inputs[:3], attn_mask, 0.0, causal, None, "None", recompute)
    theirs = F.scaled_dot_product_attention(
        *inputs[:3], attn_mask=attn_mask, is_causal=causal, enable_gqa=True
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, inputs), gradients(theirs, inputs))


def test_attention_scale_is_the_one_given(generator):
    q, k, v = qkv(generator)
    ours = FusedSDPA.apply(q, k, v, None, 0.0, False, 0.3)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True))


def test_one_new_token_attends_to_the_whole_cache(generator):
    q, k, v = qkv(generator, key_length=9)
    ours = FusedSDPA.apply(q[:, :, -1:], k, v, None, 0.0, False, None, "None", False, None, "None")
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(q[:, :, -1:], k, v, enable_gqa=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_valid_lengths_hide_the_padding(generator, side):
    q, k, v = qkv(generator)
    lengths = torch.tensor([3, 5], device="hpu")
    ours = FusedSDPA.apply(q, k, v, None, 0.0, True, None, "fast", True, lengths, side)
    real = slice(L - 3, L) if side == "left" else slice(0, 3)
    alone = F.scaled_dot_product_attention(
        q[:1, :, real], k[:1, :, real], v[:1, :, real], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(ours[:1, :, real], alone)
    full = F.scaled_dot_product_attention(q[1:], k[1:], v[1:], is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours[1:], full)


def test_a_query_that_may_see_nothing_gives_zeros_and_finite_gradients(generator):
    inputs = qkv(generator)
    hidden = torch.zeros(L, L, dtype=torch.bool, device="hpu")
    output = FusedSDPA.apply(*inputs, hidden)
    assert output.abs().max().item() == 0.0
    assert all(torch.isfinite(gradient).all().item() for gradient in gradients(output, inputs))


def test_attention_dropout_keeps_the_mean_and_drops_the_share(generator):
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 64, D, device="hpu")
    v = torch.ones(1, 1, 256, D, device="hpu")
    output = FusedSDPA.apply(q, torch.zeros(1, 1, 256, D, device="hpu"), v, None, 0.25)
    kept = output[0, 0, :, 0].cpu() * 0.75  # the share of the 256 equal weights that was kept
    assert kept.mean().item() == pytest.approx(0.75, abs=0.02)
    assert kept.std().item() > 0.0


def test_fast_softmax_is_less_exact_in_bf16(generator):
    q, k, v = (tensor.detach().bfloat16() for tensor in qkv(generator))
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=True)
    plain, fast = (FusedSDPA.apply(q, k, v, None, 0.0, False, None, mode) for mode in ("None", "fast"))
    assert plain.dtype == fast.dtype == torch.bfloat16
    error = (plain - exact).abs().mean().item(), (fast - exact).abs().mean().item()
    assert 0 < error[0] < error[1] < 0.02


def test_recomputation_keeps_less_for_the_backward_pass(generator):
    q, k, v = (torch.randn(1, 2, 256, 16, device="hpu", requires_grad=True) for _ in range(3))

    def held(recompute: bool) -> int:
        before = torch.hpu.memory_allocated()
        with sdp_kernel(enable_recompute=recompute):
            output = FusedSDPA.apply(q, k, v)
        used = torch.hpu.memory_allocated() - before
        output.sum().backward()
        return used

    assert held(False) - held(True) >= 2 * 256 * 256 * 4  # the fp32 probabilities


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 0.0, True, None, "slow"), "softmax_mode"),
        ((torch.ones(L, L, dtype=torch.bool), 0.0, True), "attn_mask or is_causal"),
        ((None, 0.0, True, None, "None", None, None, "above"), "padding side"),
    ],
)
def test_attention_refuses_arguments_that_contradict(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        FusedSDPA.apply(*qkv(generator), *arguments)


def test_attention_takes_positions_only_as_the_devices_function_does(generator):
    with pytest.raises(TypeError):
        FusedSDPA.apply(*qkv(generator), is_causal=True)


# ---- rotary embedding


def tables(length: int = 16, pairwise: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(length), 100.0 ** (-torch.arange(0, D, 2) / D))
    wide = angles.repeat_interleave(2, dim=-1) if pairwise else torch.cat((angles, angles), dim=-1)
    return wide.cos().to("hpu"), wide.sin().to("hpu")


def test_rotation_by_position_ids_turns_each_pair_by_its_angle(generator):
    x = torch.randn(B, H, L, D, generator=generator)
    cos, sin = tables()
    position_ids = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    got = RotaryPosEmbeddingHelperV2.apply(
        x.to("hpu"), cos[None, None], sin[None, None], position_ids.to("hpu")
    ).cpu()
    angle = torch.outer(torch.arange(16), 100.0 ** (-torch.arange(0, D, 2) / D))[position_ids].unsqueeze(1)
    turned = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), dim=-1))


def test_offset_is_the_first_position(generator):
    x = torch.randn(B, H, L, D, generator=generator).to("hpu")
    cos, sin = tables()
    ids = torch.arange(3, 3 + L, device="hpu")[None]
    by_offset = RotaryPosEmbeddingHelperV1.apply(x, cos[None, None], sin[None, None], 3)
    torch.testing.assert_close(
        by_offset, RotaryPosEmbeddingHelperV2.apply(x, cos[None, None], sin[None, None], ids)
    )


def test_pairwise_rotation_of_one_table_equals_blockwise_of_the_reordered(generator):
    x = torch.randn(B, H, L, D, generator=generator).to("hpu")
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7], device="hpu")
    ids = torch.arange(L, device="hpu")[None]
    pairs = apply_rotary_pos_emb(x, *tables(pairwise=True), ids, 0, RotaryPosEmbeddingMode.PAIRWISE)
    blocks = apply_rotary_pos_emb(x[..., order], *tables(), ids, 0, RotaryPosEmbeddingMode.BLOCKWISE)
    torch.testing.assert_close(pairs[..., order], blocks)


def test_a_narrow_table_rotates_only_the_first_elements(generator):
    x = torch.randn(B, H, L, 2 * D, generator=generator).to("hpu")
    ids = torch.arange(L, device="hpu")[None]
    got = RotaryPosEmbeddingHelperV2.apply(x, *tables(), ids)
    torch.testing.assert_close(got[..., :D], RotaryPosEmbeddingHelperV2.apply(x[..., :D], *tables(), ids))
    assert torch.equal(got[..., D:], x[..., D:])


def test_chatglm_layout_rotates_pairs_of_the_first_half(generator):
    x = torch.randn(L, B, H, 2 * D, generator=generator).to("hpu")
    cos, sin = tables(length=L)
    cache = torch.stack((cos[:, : D // 2], sin[:, : D // 2]), dim=-1)[:, None]
    got = RotaryPosEmbeddingHelperV3.apply(x, cache)
    cos, sin = tables(length=L, pairwise=True)
    by_pairs = apply_rotary_pos_emb(
        x[..., :D], cos[:, None, None], sin[:, None, None], None, 0, RotaryPosEmbeddingMode.PAIRWISE
    )
    torch.testing.assert_close(got[..., :D], by_pairs)
    assert torch.equal(got[..., D:], x[..., D:])


def test_rotation_keeps_the_dtype_and_its_backward_turns_back(generator):
    cos, sin = tables(length=L)
    x = torch.randn(B, H, L, D, generator=generator).to("hpu")
    assert (
        RotaryPosEmbeddingHelperV2.apply(x.bfloat16(), cos, sin, torch.arange(L, device="hpu")[None]).dtype
        == torch.bfloat16
    )
    x.requires_grad_()
    output = torch.ops.hpu.rotary_pos_embedding(x, sin[None, None], cos[None, None], None, 0, 1)
    gradient = torch.randn(B, H, L, D, generator=generator).to("hpu")
    back = torch.ops.hpu.rotary_pos_embedding_backward(gradient, sin[None, None], cos[None, None], None, 0, 1)
    torch.testing.assert_close(torch.autograd.grad(output, x, gradient)[0], back)


# ---- normalization


def test_rms_norm_divides_by_the_root_mean_square():
    x = torch.tensor([[3.0, 4.0]], device="hpu")
    got = FusedRMSNorm.apply(x, torch.tensor([1.0, 2.0], device="hpu"), 0.0).cpu()
    torch.testing.assert_close(got, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


def test_rms_norm_and_its_gradients_equal_torchs(generator):
    x = torch.randn(3, D, generator=generator).to("hpu").requires_grad_()
    weight = torch.randn(D, generator=generator).to("hpu").requires_grad_()
    ours, theirs = FusedRMSNorm.apply(x, weight, 1e-5), F.rms_norm(x, (D,), weight, 1e-5)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, [x, weight]), gradients(theirs, [x, weight]))


def test_clip_norm_scales_the_gradients_and_returns_the_norm_before():
    parameter = torch.nn.Parameter(torch.zeros(2, device="hpu"))
    clip = FusedClipNorm([parameter], 1.0)
    parameter.grad = torch.tensor([3.0, 4.0], device="hpu")
    assert clip.clip_norm([parameter]).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad.cpu(), torch.tensor([0.6, 0.8]), atol=1e-5, rtol=0)
    assert clip.clip_norm([parameter]).item() == pytest.approx(1.0, abs=1e-5)


# ---- optimizer


def trained(optimizer_class: type[torch.optim.Optimizer], steps: int, **settings: object) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6, device="hpu"))
    optimizer = optimizer_class([parameter], lr=1e-2, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        (parameter - 0.3).pow(4).sum().backward()
        optimizer.step()
    return parameter.detach().cpu()


def test_adamw_agrees_with_torchs_where_epsilon_does_not_matter():
    ours = trained(FusedAdamW, 20, weight_decay=0.1, eps=1e-12)
    torch.testing.assert_close(ours, trained(torch.optim.AdamW, 20, weight_decay=0.1, eps=1e-12))


def test_adamw_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0], device="hpu"))
    optimizer = FusedAdamW([parameter], lr=0.1, betas=(0.5, 0.75), eps=0.5, weight_decay=0.2)
    parameter.grad = torch.tensor([2.0], device="hpu")
    optimizer.step()
    # moments 1 and 1; step 0.1 sqrt(0.25) / 0.5 = 0.1; epsilon is added to the uncorrected root
    assert parameter.item() == pytest.approx(1.0 * (1 - 0.1 * 0.2) - 0.1 * 1.0 / (1.0 + 0.5))


def test_adamw_resumed_from_its_state_equals_the_uninterrupted_run(tmp_path):
    def optimizer_for(parameter: torch.nn.Parameter) -> FusedAdamW:
        return FusedAdamW([{"params": [parameter], "weight_decay": 0.1}], lr=1e-2)

    def run(parameter: torch.nn.Parameter, optimizer: FusedAdamW, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (parameter - 0.3).pow(4).sum().backward()
            optimizer.step()

    whole = torch.nn.Parameter(torch.linspace(-1, 1, 6, device="hpu"))
    run(whole, optimizer_for(whole), 6)
    first = torch.nn.Parameter(torch.linspace(-1, 1, 6, device="hpu"))
    optimizer = optimizer_for(first)
    run(first, optimizer, 3)
    torch.save({"parameter": first.detach(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    second = torch.nn.Parameter(saved["parameter"].to("hpu"))
    optimizer = optimizer_for(second)
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.state[second]["exp_avg"].device.type == "hpu"
    run(second, optimizer, 3)
    assert torch.equal(second, whole)


def test_the_operator_that_deepspeed_calls_makes_the_same_update():
    weights = [torch.ones(2, device="hpu") for _ in range(2)]
    for weight, decay in zip(weights, ((0.98,), (torch.tensor([0.98], device="hpu"), True)), strict=True):
        moments = [torch.zeros(2, device="hpu")], [torch.zeros(2, device="hpu")]
        step = torch.tensor([-0.1], device="hpu")
        torch.ops.hpu.optimizer_adamw(
            [torch.full((2,), 2.0, device="hpu")], [weight], *moments, step, 0.5, 0.75, 0.5, *decay
        )
        torch.testing.assert_close(weight.cpu(), torch.full((2,), 0.98 - 0.1 / 1.5))


# ---- the rest


def test_ctc_loss_ignores_the_padding_of_the_targets(generator):
    log_probs = torch.randn(12, B, 5, generator=generator).log_softmax(-1)
    targets = torch.tensor([[1, 2, 3, 4], [2, 2, -100, -100]])
    lengths = torch.tensor([12, 12]), torch.tensor([4, 2])
    hpu = [tensor.to("hpu") for tensor in (log_probs, targets, *lengths)]
    got = CTCLoss.apply(*hpu, 0, "sum", True).cpu()
    flat = torch.tensor([1, 2, 3, 4, 2, 2])
    torch.testing.assert_close(
        got, F.ctc_loss(log_probs, flat, *lengths, reduction="sum", zero_infinity=True)
    )


def test_fp8_casts_scale_clamp_and_come_back():
    x = torch.tensor([0.5, -1.0, 1000.0], device="hpu")
    small, amax = Fp8Ops.cast_to_fp8_v2(x, torch.tensor(2.0, device="hpu"), False, True, torch.float8_e4m3fn)
    assert small.dtype == torch.float8_e4m3fn
    assert amax.item() == 1000.0
    back = Fp8Ops.cast_from_fp8(small, torch.tensor(0.5, device="hpu"), torch.float32)
    assert back.tolist() == [0.5, -1.0, 224.0]  # the largest e4m3 number is 448


def test_fp8_matmul_takes_the_inverse_scales(generator):
    a, b = torch.randn(3, 4, generator=generator).to("hpu"), torch.randn(5, 4, generator=generator).to("hpu")
    (a8, _), (b8, _) = Fp8Ops.cast_to_fp8_v2(a * 8), Fp8Ops.cast_to_fp8_v2(b * 8)
    inverse = torch.tensor(1 / 8, device="hpu")
    got = Fp8Ops.fp8_gemm_v2(a8, False, b8, True, None, torch.float32, inverse, inverse)
    torch.testing.assert_close(got, (a8.float() / 8) @ (b8.float() / 8).t())
    torch.testing.assert_close(got, a @ b.t(), atol=0.3, rtol=0.1)


def test_what_the_emulator_cannot_do_says_so():
    x = torch.ones(2, device="hpu")
    with pytest.raises(NotImplementedError, match="stochastic rounding"):
        Fp8Ops.cast_to_fp8_v2(x, None, True)
    assert not hasattr(torch.ops.hpu, "cast_to_fp8_just_in_time")


def test_mixture_of_experts_weighs_the_chosen_experts(generator):
    x = torch.randn(3, D, generator=generator).to("hpu")
    w1, w2 = ([torch.randn(6, D, generator=generator).to("hpu") for _ in range(4)] for _ in range(2))
    w3 = [torch.randn(D, 6, generator=generator).to("hpu") for _ in range(4)]
    table = torch.tensor([[0, 3], [1, 2], [3, 1]], device="hpu")
    share = torch.rand(3, 2, generator=generator).to("hpu")
    got = torch.ops.hpu.mixture_of_experts(x, table, share, w1, w2, w3, True, "silu", 0, 3)
    for token in range(3):
        wanted = sum(
            share[token, place]
            * F.linear(F.silu(F.linear(x[token], w1[e])) * F.linear(x[token], w2[e]), w3[e])
            for place, e in enumerate(table[token].tolist())
        )
        torch.testing.assert_close(got[token], wanted, atol=1e-4, rtol=1e-4)
