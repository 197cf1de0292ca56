"""Policy, value and reward-model losses, and the logits functions beneath them."""

import math

import pytest
import torch
from torch.distributions import Categorical

from rlhf_hw.algorithms import losses
from rlhf_hw.algorithms.losses import (
    cross_entropy_sum,
    log_softmax_and_entropy,
    pairwise_reward_loss,
    policy_loss,
    row_chunks,
    selective_log_softmax,
    value_loss,
)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 3 rows of 11, so that a small tensor takes several, the last one partly filled."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 33)


# --- policy -----------------------------------------------------------------------------------------------


def test_policy_loss_by_hand():
    # clip 0.2, ratios 1.5 1.5 0.5 0.5 1.1, advantages + - + - +
    # 0: A=2,  max(-3, -2 * 1.2 = -2.4) = -2.4   clipped: no more reward for going further
    # 1: A=-2, max( 3,  2 * 1.2 =  2.4) =  3     not clipped: a bad token made likelier is punished in full
    # 2: A=2,  max(-1, -2 * 0.8 = -1.6) = -1     not clipped
    # 3: A=-2, max( 1,  2 * 0.8 =  1.6) =  1.6   clipped
    # 4: A=1,  max(-1.1, -1.1)          = -1.1   inside the range
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]])
    old = torch.full((1, 5), -2.0)
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])
    found = policy_loss(old + ratio.log(), old, advantages, torch.ones(1, 5), clip_range=0.2)
    assert torch.allclose(found.loss, torch.tensor([[-2.4, 3.0, -1.0, 1.6, -1.1]]))
    assert torch.allclose(found.ratio, ratio)
    assert found.clipped.tolist() == [[1, 0, 0, 1, 0]]
    assert torch.allclose(found.approxkl, ratio.log().square() / 2, atol=1e-6)


def test_policy_gradient_is_zero_exactly_where_clipped_and_minus_advantage_times_ratio_elsewhere():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1, 1.0]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0, 3.0]], dtype=torch.float64)
    old = torch.full_like(ratio, -2.0)
    logprobs = (old + ratio.log()).requires_grad_()
    found = policy_loss(logprobs, old, advantages, torch.ones_like(ratio), clip_range=0.2)
    found.loss.sum().backward()
    expected = torch.where(found.clipped.bool(), 0.0, -advantages * ratio)
    assert torch.allclose(logprobs.grad, expected)
    assert (logprobs.grad[found.clipped.bool()] == 0).all()
    assert [t.requires_grad for t in found] == [True, False, False, False]


def test_on_policy_the_gradient_is_the_plain_policy_gradient():
    torch.manual_seed(0)
    logprobs = torch.randn(3, 4).requires_grad_()
    advantages = torch.randn(3, 4)
    policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(3, 4), 0.2).loss.sum().backward()
    assert torch.allclose(logprobs.grad, -advantages)


def test_micro_batches_divided_by_the_global_token_count_equal_one_batch():
    torch.manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 6, 5).unbind()
    mask = torch.arange(5) < torch.tensor([5, 1, 2, 5, 3, 1])[:, None]
    count = mask.sum()
    gradients = []
    for parts in (1, 2, 3):
        leaf = logprobs.clone().requires_grad_()
        for batch in zip(*(t.tensor_split(parts) for t in (leaf, old, advantages, mask)), strict=True):
            (policy_loss(*batch, 0.2).loss.sum() / count).backward()
        gradients.append(leaf.grad)
    assert torch.allclose(gradients[0], gradients[1])
    assert torch.allclose(gradients[0], gradients[2])


# --- value ------------------------------------------------------------------------------------------------


def test_value_loss_by_hand():
    # clip 0.5 around old value 1, so predictions are held within [0.5, 1.5]; return 3, then 0
    # 0: V=2,   return 3: free (2-3)² = 1,       held (1.5-3)² = 2.25  -> 2.25 / 2, clipped
    # 1: V=1.2, return 3: free (1.2-3)² = 3.24,  held the same         -> 1.62
    # 2: V=2,   return 0: free 4,                held 2.25             -> 2, moved the wrong way: not clipped
    values = torch.tensor([[2.0, 1.2, 2.0]])
    found = value_loss(values, torch.ones(1, 3), torch.tensor([[3.0, 3.0, 0.0]]), torch.ones(1, 3), 0.5)
    assert torch.allclose(found.loss, torch.tensor([[1.125, 1.62, 2.0]]))
    assert found.clipped.tolist() == [[1, 0, 0]]


def test_value_gradient_is_zero_exactly_where_clipped_and_the_error_elsewhere():
    torch.manual_seed(0)
    old, returns = torch.randn(2, 20, 20, dtype=torch.float64).unbind()
    values = (old + torch.randn(20, 20, dtype=torch.float64)).requires_grad_()
    found = value_loss(values, old, returns, torch.ones(20, 20), 0.3)
    found.loss.sum().backward()
    clipped = found.clipped.bool()
    assert 0 < clipped.sum() < clipped.numel()
    assert (values.grad[clipped] == 0).all()
    assert torch.allclose(values.grad[~clipped], (values.detach() - returns)[~clipped])


def test_losses_refuse_bad_input():
    ones = torch.ones(2, 3)
    for clip_range in (0.0, -0.2, float("nan")):
        with pytest.raises(ValueError, match="clip_range must be positive"):
            policy_loss(ones, ones, ones, ones, clip_range)
        with pytest.raises(ValueError, match="clip_range_value must be positive"):
            value_loss(ones, ones, ones, ones, clip_range)
    with pytest.raises(ValueError, match=r"advantages \[3\]"):
        policy_loss(ones, ones, torch.ones(3), ones, 0.2)
    with pytest.raises(ValueError, match=r"returns \[2, 1\]"):
        value_loss(ones, ones, torch.ones(2, 1), ones, 0.2)
    with pytest.raises(ValueError, match="shapes must be equal"):
        pairwise_reward_loss(torch.ones(2, 1), torch.ones(2))
    with pytest.raises(ValueError, match=r"margin \[1\]"):
        pairwise_reward_loss(torch.ones(2), torch.ones(2), torch.ones(1))
    with pytest.raises(ValueError, match="without V"):
        selective_log_softmax(torch.ones(2, 3, 5), torch.zeros(2, 5, dtype=torch.long))


# --- reward model -----------------------------------------------------------------------------------------


def test_pairwise_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 2.0])
    # -log sigmoid(x) = log(1 + e^-x) for x = 0, 2, -2
    expected = [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    assert torch.allclose(pairwise_reward_loss(chosen, rejected), torch.tensor(expected))
    margin = torch.tensor([0.0, 2.0, 0.0])  # pair 1 must now win by 2 to be where pair 0 is
    expected[1] = math.log(2)
    assert torch.allclose(pairwise_reward_loss(chosen, rejected, margin), torch.tensor(expected))


def test_pairwise_loss_sees_only_differences_and_does_not_overflow():
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 8).unbind()
    shifted = pairwise_reward_loss(chosen + 5, rejected + 5)
    assert torch.allclose(shifted, pairwise_reward_loss(chosen, rejected), atol=1e-6)
    assert pairwise_reward_loss(torch.tensor([-1e4]), torch.tensor([0.0])).tolist() == [1e4]


# --- logits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(11,), (7, 11), (2, 7, 11), (2, 3, 4, 11)])
def test_selective_log_softmax_equals_log_softmax_then_gather(small_chunks, shape):
    torch.manual_seed(0)
    logits, index = torch.randn(shape), torch.randint(11, shape[:-1])
    expected = logits.log_softmax(-1).gather(-1, index[..., None])[..., 0]
    assert torch.allclose(selective_log_softmax(logits, index), expected, atol=1e-6)


def test_selective_log_softmax_gradient(small_chunks):
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 11, dtype=torch.float64, requires_grad=True)
    index = torch.randint(11, (2, 7))
    assert torch.autograd.gradcheck(lambda x: selective_log_softmax(x, index), (logits,))
    sliced = torch.randn(2, 9, 11, dtype=torch.float64, requires_grad=True)  # as a response in its sequence
    assert torch.autograd.gradcheck(lambda x: selective_log_softmax(x[:, 1:-1], index), (sliced,))


def test_bfloat16_logits_give_float32_log_probabilities_and_gradients_as_exact_as_bfloat16_can_hold(
    small_chunks,
):
    torch.manual_seed(0)
    coarse = (torch.randn(2, 7, 1000) * 5).to(torch.bfloat16).requires_grad_()
    exact = coarse.detach().double().requires_grad_()
    index, weight = torch.randint(1000, (2, 7)), torch.randn(2, 7)
    found = selective_log_softmax(coarse, index)
    expected = exact.log_softmax(-1).gather(-1, index[..., None])[..., 0]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-5)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert coarse.grad.dtype == torch.bfloat16
    assert torch.allclose(coarse.grad.double(), exact.grad, rtol=2**-8, atol=1e-7)


def test_selective_log_softmax_keeps_no_float32_copy_of_half_precision_logits():
    logits = torch.randn(2, 16, 100).to(torch.bfloat16).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_log_softmax(logits, torch.zeros(2, 16, dtype=torch.long))
    assert sum(t.numel() for t in kept if t.dtype == torch.float32) <= 2 * 16


def test_row_chunks_are_views_that_cover_every_row_once_in_order(small_chunks):
    whole = torch.arange(2 * 9 * 11).view(2, 9, 11)
    sliced = whole[:, 1:-1]
    chunks = list(row_chunks(sliced))
    assert torch.equal(torch.cat(chunks), sliced.reshape(-1, 11))
    assert all(chunk.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for chunk in chunks)
    assert [len(chunk) for chunk in chunks] == [3, 3, 1, 3, 3, 1]


def entropies(logits):
    return log_softmax_and_entropy(logits, torch.zeros(logits.shape[:-1], dtype=torch.long))[1]


def test_entropy_equals_torch_distributions_and_its_bounds(small_chunks):
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 11) * 4 + 1000
    expected = Categorical(logits=logits.double()).entropy()
    assert torch.allclose(entropies(logits).double(), expected, atol=1e-6)
    assert float(entropies(torch.zeros(11))) == pytest.approx(math.log(11))  # uniform
    certain = torch.full((11,), -torch.inf)
    certain[3] = 2.0
    assert entropies(certain) == 0  # 1 * log 1, and ten times 0 * log 0


def test_entropy_of_bfloat16_logits_is_that_of_their_float32_values():
    torch.manual_seed(0)
    logits = (torch.randn(4, 5000) * 3).to(torch.bfloat16)
    assert entropies(logits).dtype == torch.float32
    assert torch.equal(entropies(logits), entropies(logits.float()))


def test_log_probabilities_and_their_gradient_are_the_same_beside_an_entropy(small_chunks):
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 11, dtype=torch.float64, requires_grad=True)
    index, weight = torch.randint(11, (2, 7)), torch.randn(2, 7, dtype=torch.float64)
    logprobs, entropy = log_softmax_and_entropy(logits, index)
    assert torch.allclose(logprobs, selective_log_softmax(logits, index), atol=1e-12)
    assert not entropy.requires_grad
    gradients = [
        torch.autograd.grad((found * weight).sum(), logits)[0]
        for found in (logprobs, selective_log_softmax(logits, index))
    ]
    assert torch.allclose(*gradients, atol=1e-12)


def test_many_logits_are_upcast_a_part_at_a_time():
    assert [len(rows) for rows in row_chunks(torch.empty(100, 2**14))] == [16] * 6 + [4]
    assert {len(rows) for rows in row_chunks(torch.empty(2**6, 2**24, device="meta"))} == {1}


def test_cross_entropy_sum_equals_torch_and_halves_add_up():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 11), torch.randint(11, (4, 6))
    labels[0, 2:] = labels[3] = -100
    whole = cross_entropy_sum(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits.view(-1, 11), labels.view(-1), reduction="sum")
    assert torch.allclose(whole, expected)
    halves = cross_entropy_sum(logits[:2], labels[:2]) + cross_entropy_sum(logits[2:], labels[2:])
    assert torch.allclose(halves, whole)


def test_cross_entropy_without_targets_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 11, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.full((2, 3), -1), ignore_index=-1)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_cross_entropy_gradient_never_reaches_ignored_positions():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 11, requires_grad=True)
    cross_entropy_sum(logits, torch.tensor([[4, -100, 5]])).backward()
    assert (logits.grad[0, 1] == 0).all()
    assert (logits.grad[0, [0, 2]] != 0).all()
