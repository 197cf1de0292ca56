"""Per-token rewards, and the shaping of scores."""

import pytest
import torch

from rlhf_hw.algorithms.masked import combine, masked_moments
from rlhf_hw.algorithms.rewards import (
    RunningMoments,
    apply_missing_eos_penalty,
    clip_scores,
    normalise_scores,
    shape_rewards,
)


def test_rewards_by_hand():
    scores = torch.tensor([10.0, -3.0, 1.0])
    kl = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    # coefficient 1/2: row 0: -0.5, -1, 10 - 2; row 1: -0.5, -3 - 1; row 2: 1 - 0.5
    assert shape_rewards(scores, kl, mask, 0.5).tolist() == [[-0.5, -1, 8], [-0.5, -4, 0], [0.5, 0, 0]]


def test_rewards_of_a_response_sum_to_score_less_coefficient_times_kl():
    torch.manual_seed(0)
    lengths = torch.randint(1, 9, (32,))
    mask = torch.arange(8) < lengths[:, None]
    scores, kl = torch.randn(32), torch.randn(32, 8)
    total = shape_rewards(scores, kl, mask, 0.2).sum(1)
    assert torch.allclose(total, scores - 0.2 * (kl * mask).sum(1), atol=1e-6)


def test_without_penalty_only_the_last_real_token_is_rewarded():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    rewards = shape_rewards(torch.tensor([2.0, 3.0]), torch.randn(2, 4), mask, 0.0)
    assert rewards.tolist() == [[0, 2, 0, 0], [0, 0, 0, 3]]


def test_rewards_refuse_a_score_with_no_token_to_stand_on():
    kl = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="response 1 has no real token"):
        shape_rewards(torch.ones(2), kl, torch.tensor([[1, 0, 0], [0, 0, 0]]), 0.1)
    with pytest.raises(ValueError, match="right padded; in row 0"):
        shape_rewards(torch.ones(2), kl, torch.tensor([[1, 0, 1], [1, 1, 1]]), 0.1)
    with pytest.raises(ValueError, match=r"scores \[3\], responses \[2\]"):
        shape_rewards(torch.ones(3), kl, torch.ones(2, 3), 0.1)


def test_score_shaping_by_hand():
    scores = torch.tensor([1.0, 4.0, -20.0])
    assert normalise_scores(scores, mean=2.0, std=4.0).tolist() == [-0.25, 0.5, -5.5]
    assert clip_scores(scores, 3.0).tolist() == [1, 3, -3]
    ended = torch.tensor([True, False, False])
    assert apply_missing_eos_penalty(scores, ended, 1.5).tolist() == [1, 2.5, -21.5]
    assert apply_missing_eos_penalty(scores, ended, 0.0).tolist() == scores.tolist()
    assert scores.tolist() == [1, 4, -20]  # nothing was changed in place


def test_score_shaping_refuses_numbers_that_would_spoil_the_reward():
    scores = torch.ones(2)
    for std in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive std"):
            normalise_scores(scores, 0.0, std)
    with pytest.raises(ValueError, match="limit must be positive"):
        clip_scores(scores, 0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        apply_missing_eos_penalty(scores, torch.ones(2), -1.0)
    with pytest.raises(ValueError, match="shapes must be equal"):
        apply_missing_eos_penalty(scores, torch.ones(3), 1.0)


def test_running_moments_by_hand():
    running = RunningMoments()
    assert (running.count, running.mean, running.std) == (0, 0.0, 1.0)
    running.update(masked_moments(torch.tensor([1.0, 3.0])))  # mean 2, deviations 1 + 1
    assert (running.count, running.mean) == (2, 2.0)
    assert running.std == pytest.approx(2**0.5)
    running.update(masked_moments(torch.tensor([5.0])))  # {1, 3, 5}: mean 3, (4 + 0 + 4) / 2 = 4
    assert (running.count, running.mean, running.std) == (3, 3.0, 2.0)


def test_running_moments_do_not_depend_on_the_batches_scores_came_in():
    torch.manual_seed(0)
    scores = torch.randn(1000) * 3 + 50
    exact = scores.double()
    for size in (1, 7, 100, 1000):
        running = RunningMoments()
        for batch in scores.split(size):
            halves = [
                masked_moments(half) for half in batch.tensor_split(2)
            ]  # two processes, one may be empty
            running.update(combine(halves))
        assert running.count == 1000
        assert running.mean == pytest.approx(float(exact.mean()), rel=1e-6)
        assert running.std == pytest.approx(float(exact.std()), rel=1e-6)


def test_equal_scores_are_scaled_by_one():
    running = RunningMoments()
    running.update(masked_moments(torch.full((4,), 2.5)))
    assert running.std == 1.0


def test_resumed_running_moments_equal_uninterrupted_ones():
    torch.manual_seed(0)
    first, resumed = RunningMoments(), RunningMoments()
    first.update(masked_moments(torch.randn(10)))
    resumed.load_state_dict(first.state_dict())
    later = masked_moments(torch.randn(10))
    first.update(later)
    resumed.update(later)
    assert resumed.state_dict() == first.state_dict()
    with pytest.raises(ValueError, match="running moments need"):
        resumed.load_state_dict({"mean": 0.0})


def test_running_moments_refuse_a_nan_score_and_stay_as_they_were():
    running = RunningMoments()
    running.update(masked_moments(torch.tensor([1.0, 3.0])))
    with pytest.raises(ValueError, match="scores must be finite"):
        running.update(masked_moments(torch.tensor([1.0, float("nan")])))
    assert (running.count, running.mean) == (2, 2.0)
