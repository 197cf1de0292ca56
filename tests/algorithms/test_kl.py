"""KL estimators against exact divergences, and the controllers of the coefficient."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from rlhf_hw.algorithms.kl import (
    KL_ESTIMATORS,
    NEEDS_LOGITS,
    AdaptiveKLController,
    FixedKLController,
    ProportionalKLController,
    per_token_kl,
)
from rlhf_hw.arguments.ppo import KL_SPELLINGS, PPOArguments


def test_estimators_by_hand():
    # p = 0.5, q = 0.25: d = log 2.  p = 0.5, q = 1: d = -log 2.
    logprobs, ref_logprobs = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 1.0]]).log()
    d = math.log(2)
    expected = {
        "kl": [d, -d],
        "k2": [d * d / 2, d * d / 2],
        "k3": [0.5 - 1 + d, 2 - 1 - d],  # q / p - 1 + d, with q / p = 1/2 and 2
        "abs": [d, d],
        "clamped_kl": [d, 0.0],
        # m = (p + q) / 2 = 3/8 and 3/4; log p - log m = log(4/3) where p is the larger, log q - log m = log(4/3) where q is
        "jensen_shannon": [math.log(4 / 3) / 2, math.log(4 / 3) / 2],
    }
    assert set(expected) | NEEDS_LOGITS == set(KL_ESTIMATORS)
    for name, values in expected.items():
        assert torch.allclose(per_token_kl(name, logprobs, ref_logprobs), torch.tensor([values])), name


def test_jensen_shannon_is_the_formula_and_holds_where_probabilities_underflow():
    torch.manual_seed(0)
    logp, logq = (-9 * torch.rand(2, 4, 5, dtype=torch.float64)).unbind()
    log_m = ((logp.exp() + logq.exp()) / 2).log()
    by_formula = ((logp - log_m).clamp(min=0) + (logq - log_m).clamp(min=0)) / 2
    assert torch.allclose(per_token_kl("jensen_shannon", logp, logq), by_formula, atol=1e-12)
    # exp(-2000) is 0 in every precision; the bound log(2) / 2 of two tokens that have nothing in common stays
    far = per_token_kl("jensen_shannon", torch.tensor([[-1.0]]), torch.tensor([[-2000.0]]))
    assert float(far) == pytest.approx(math.log(2) / 2)


def test_other_names_are_resolved_to_one():
    for spelling, name in KL_SPELLINGS.items():
        assert PPOArguments(kl_estimator=spelling).kl_estimator == name
        assert name in KL_ESTIMATORS


def test_full_by_hand_and_against_torch_distributions():
    # P = (1/2, 1/2), Q = (1/4, 3/4): KL = 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert float(per_token_kl("full", p, q)) == pytest.approx(0.5 * math.log(4 / 3))
    torch.manual_seed(0)
    logits, ref_logits = torch.randn(2, 3, 4, 50).unbind()
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=ref_logits))
    assert torch.allclose(per_token_kl("full", logits, ref_logits), expected, atol=1e-6)


def test_full_takes_logits_or_log_probabilities_and_entries_the_policy_never_samples():
    torch.manual_seed(0)
    logits, ref_logits = torch.randn(2, 3, 4, 50).unbind()
    of_logits = per_token_kl("full", logits, ref_logits)
    of_logprobs = per_token_kl("full", logits.log_softmax(-1), ref_logits.log_softmax(-1))
    assert torch.allclose(of_logits, of_logprobs, atol=1e-6)
    logits[..., 7] = ref_logits[..., 7] = -torch.inf
    without = [torch.cat([x[..., :7], x[..., 8:]], -1) for x in (logits, ref_logits)]
    assert torch.allclose(per_token_kl("full", logits, ref_logits), per_token_kl("full", *without), atol=1e-6)


def test_k1_and_k3_are_unbiased_and_k3_has_the_smaller_variance():
    torch.manual_seed(0)
    policy = Categorical(logits=torch.randn(20))
    reference = Categorical(logits=policy.logits + 0.5 * torch.randn(20))
    exact = float(kl_divergence(policy, reference))
    tokens = policy.sample((1, 200_000))
    logprobs, ref_logprobs = policy.log_prob(tokens), reference.log_prob(tokens)
    spread = {}
    for name in ("kl", "k3"):
        estimate = per_token_kl(name, logprobs, ref_logprobs)
        spread[name] = float(estimate.std())
        standard_error = spread[name] / 200_000**0.5
        assert abs(float(estimate.mean()) - exact) < 4 * standard_error, name
    assert spread["k3"] < spread["kl"] / 2


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_a_policy_equal_to_its_reference_has_no_divergence(name):
    torch.manual_seed(0)
    logprobs = torch.randn(2, 3, 10).log_softmax(-1)
    assert (per_token_kl(name, logprobs, logprobs) == 0).all()


def test_k3_keeps_its_digits_for_a_policy_that_has_hardly_moved():
    d = 1e-4  # k3 = d² / 2 - d³ / 6 + ... = 5e-9, where exp(-d) - 1 + d in float32 would round to about 1e-7
    k3 = per_token_kl("k3", torch.tensor([[-d / 2]]), torch.tensor([[-3 * d / 2]]))
    assert float(k3) == pytest.approx(d * d / 2, rel=2e-3)


def test_bfloat16_logprobs_are_compared_in_float32():
    torch.manual_seed(0)
    logprobs, ref_logprobs = torch.randn(2, 4, 8).to(torch.bfloat16).unbind()
    for name in KL_ESTIMATORS:
        found = per_token_kl(name, logprobs, ref_logprobs)
        assert found.dtype == torch.float32
        assert torch.equal(found, per_token_kl(name, logprobs.float(), ref_logprobs.float()))


def test_bad_input_is_refused():
    with pytest.raises(
        ValueError,
        match="unknown KL estimator 'k4'; known: kl, clamped_kl, k2, k3, jensen_shannon, abs, full",
    ):
        per_token_kl("k4", torch.zeros(1, 1), torch.zeros(1, 1))
    for name in KL_ESTIMATORS:
        with pytest.raises(ValueError, match="shapes must be equal"):
            per_token_kl(name, torch.zeros(2, 3), torch.zeros(3))


def test_adaptive_controller_by_hand():
    controller = AdaptiveKLController(init_kl_coef=0.2, target=6.0, horizon=10_000)
    # 6.6 / 6 - 1 = 0.1, within the clip: 0.2 * (1 + 0.1 * 256 / 10000) = 0.2 * 1.00256
    controller.update(current_kl=6.6, n_samples=256)
    assert controller.kl_coef == pytest.approx(0.2 * 1.00256)
    # 60 / 6 - 1 = 9, clipped to 0.2: * (1 + 0.2 * 256 / 10000) = * 1.00512
    controller.update(current_kl=60.0, n_samples=256)
    assert controller.kl_coef == pytest.approx(0.2 * 1.00256 * 1.00512)
    # a negative estimate is clipped to -0.2: * 0.99488
    controller.update(current_kl=-3.0, n_samples=256)
    assert controller.kl_coef == pytest.approx(0.2 * 1.00256 * 1.00512 * 0.99488)


def test_proportional_controller_by_hand():
    controller = ProportionalKLController(init_kl_coef=0.2, target=6.0, k_beta=0.1)
    # 6.6 / 6 - 1 = 0.1, within the clip: 0.2 * (1 + 0.1 * 0.1) = 0.202, however many responses there were
    controller.update(current_kl=6.6, n_samples=100_000)
    assert controller.kl_coef == pytest.approx(0.202)
    # 60 / 6 - 1 = 9, clipped to 0.2: * (1 + 0.1 * 0.2) = * 1.02
    controller.update(current_kl=60.0, n_samples=1)
    assert controller.kl_coef == pytest.approx(0.202 * 1.02)
    # -3 / 6 - 1, clipped to -0.2: * 0.98
    controller.update(current_kl=-3.0, n_samples=256)
    assert controller.kl_coef == pytest.approx(0.202 * 1.02 * 0.98)
    with pytest.raises(ValueError, match="k_beta must lie between 0 and 5, found 5"):
        ProportionalKLController(0.2, 6.0, 5.0)


def test_adaptive_controller_steers_a_simulated_policy_to_the_target():
    controller = AdaptiveKLController(init_kl_coef=1.0, target=6.0, horizon=1000)
    for _ in range(400):
        controller.update(current_kl=1.2 / controller.kl_coef, n_samples=100)  # more penalty, less KL
    assert 1.2 / controller.kl_coef == pytest.approx(6.0, rel=1e-3)


def test_fixed_controller_never_moves():
    controller = FixedKLController(0.05)
    controller.update(current_kl=100.0, n_samples=512)
    assert controller.kl_coef == 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedKLController(0.3),
        lambda: AdaptiveKLController(0.3, 6.0, 1000),
        lambda: ProportionalKLController(0.3, 6.0, 0.1),
    ],
)
def test_a_resumed_controller_continues_where_the_other_was(make):
    first, resumed = make(), make()
    first.update(20.0, 64)
    resumed.load_state_dict(first.state_dict())
    first.update(3.0, 64)
    resumed.update(3.0, 64)
    assert resumed.kl_coef == first.kl_coef
    with pytest.raises(ValueError, match="needs kl_coef"):
        resumed.load_state_dict({})


def test_controllers_refuse_what_they_cannot_steer_by():
    with pytest.raises(ValueError, match="not negative"):
        FixedKLController(-0.1)
    with pytest.raises(ValueError, match="target must be positive"):
        AdaptiveKLController(0.2, 0.0, 10_000)
    with pytest.raises(ValueError, match="horizon must be positive"):
        AdaptiveKLController(0.2, 6.0, 0)
    controller = AdaptiveKLController(0.2, 6.0, 100)
    with pytest.raises(ValueError, match="finite"):
        controller.update(float("nan"), 10)
    with pytest.raises(
        ValueError, match="horizon 100 is too short for 500 samples an update; it must exceed 100"
    ):
        controller.update(0.0, 500)
    assert controller.kl_coef == 0.2
