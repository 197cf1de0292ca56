"""Generalised advantage estimation."""

import pytest
import torch

from rlhf_hw.algorithms.advantages import gae


def test_gae_by_hand_on_ragged_responses():
    # gamma = 1/2, lam = 1/2, so gamma * lam = 1/4.
    # Row 0, 3 tokens: rewards 1 2 4, values 2 4 8
    #   delta2 = 4 + 0        - 8 = -4      A2 = -4
    #   delta1 = 2 + 8 / 2    - 4 =  2      A1 =  2 + -4 / 4 = 1
    #   delta0 = 1 + 4 / 2    - 2 =  1      A0 =  1 +  1 / 4 = 1.25
    # Row 1, 2 tokens: rewards 1 2, values 2 4, then padding that must not bootstrap
    #   delta1 = 2 + 0        - 4 = -2      A1 = -2
    #   delta0 = 1 + 4 / 2    - 2 =  1      A0 =  1 + -2 / 4 = 0.5
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 100.0]])
    values = torch.tensor([[2.0, 4.0, 8.0], [2.0, 4.0, 100.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1.25, 1, -4], [0.5, -2, 0]]
    assert returns.tolist() == [[3.25, 5, 4], [2.5, 2, 0]]  # advantages + values


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.99, 1.0), (0.7, 0.0)])
def test_gae_equals_the_explicit_double_sum(gamma, lam):
    """A[t] = sum over l of (gamma * lam)^l * delta[t + l], row by row, in Python floats."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 2, 5, 9, 9, 4]
    rewards, values = torch.randn(2, len(lengths), 9, generator=generator, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            expected = sum(
                (gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, length)
            )
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-12)
            assert float(returns[row, t]) == pytest.approx(expected + v[t], abs=1e-12)


def test_with_lambda_1_the_return_is_the_discounted_sum_of_rewards_whatever_the_critic_says():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(1, 6, generator=generator)
    mask = torch.ones(1, 6)
    for _ in range(3):
        _, returns = gae(rewards, torch.randn(1, 6, generator=generator), mask, gamma=0.9, lam=1.0)
        expected = [sum(0.9 ** (k - t) * float(rewards[0, k]) for k in range(t, 6)) for t in range(6)]
        assert torch.allclose(returns[0], torch.tensor(expected), atol=1e-5)


def test_a_perfect_critic_leaves_no_advantage():
    rewards = torch.tensor([[0.0, 0.0, 3.0]])
    values = torch.tensor([[3.0, 3.0, 3.0]])  # the only reward, 3, is still to come at each token
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.95)
    assert advantages.tolist() == [[0, 0, 0]]
    assert returns.tolist() == [[3, 3, 3]]


def test_half_precision_inputs_are_accumulated_in_float32():
    rewards = torch.full((1, 300), 1.0, dtype=torch.bfloat16)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), torch.ones(1, 300), gamma=1.0, lam=1.0)
    assert advantages.dtype == torch.float32
    assert advantages[0, 0] == 300  # bfloat16 stops counting at 256


def test_bad_input_is_refused():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], found 1.5"):
        gae(ones, ones, ones, 1.5, 0.95)
    with pytest.raises(ValueError, match="lam"):
        gae(ones, ones, ones, 1.0, -0.1)
    with pytest.raises(ValueError, match="shapes must be equal"):
        gae(ones, torch.ones(2, 4), ones, 1.0, 0.95)
    with pytest.raises(ValueError, match="right padded; in row 1"):
        gae(ones, ones, torch.tensor([[1, 1, 0], [0, 1, 1]]), 1.0, 0.95)
