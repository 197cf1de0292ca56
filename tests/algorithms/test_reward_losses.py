"""The reward model's losses beside the pairwise one: token by token, and as the cross-entropy of a preference."""

import math

import pytest
import torch

from rlhf_hw.algorithms.losses import (
    cross_entropy_reward_loss,
    divergent_part,
    pairwise_reward_loss,
    tokenwise_reward_loss,
)

SCORES = torch.tensor([1.5, -2.0, 0.0, 40.0])
OTHERS = torch.tensor([0.5, 3.0, 0.0, -40.0])


def softplus(x):
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def test_cross_entropy_by_hand():
    # logit = second - first = 0.5 - 1.5 = -1. First preferred: -log(1 - sigmoid(-1)) = -log sigmoid(1) = 0.3133;
    # second preferred: -log sigmoid(-1) = 1.3133
    first, second = torch.tensor([1.5, 1.5]), torch.tensor([0.5, 0.5])
    found = cross_entropy_reward_loss(first, second, torch.tensor([False, True]))
    assert found.tolist() == pytest.approx([0.31326, 1.31326], abs=1e-5)
    # with a margin of 0.25 the preferred answer's lead counts for less: leads of 0.75 and -1.25
    found = cross_entropy_reward_loss(first, second, torch.tensor([False, True]), torch.tensor([0.25, 0.25]))
    assert found.tolist() == pytest.approx([softplus(-0.75), softplus(1.25)], abs=1e-5)


@pytest.mark.parametrize("margin", [None, torch.tensor([0.5, -1.0, 0.0, 2.0])])
def test_cross_entropy_of_a_clean_label_is_the_pairwise_loss(margin):
    expected = pairwise_reward_loss(SCORES, OTHERS, margin)
    second = torch.ones(4, dtype=torch.bool)
    assert torch.allclose(cross_entropy_reward_loss(SCORES, OTHERS, ~second, margin), expected)
    assert torch.allclose(cross_entropy_reward_loss(OTHERS, SCORES, second, margin), expected)


def test_a_preference_that_is_no_mask_is_refused():
    with pytest.raises(ValueError, match=r"second_preferred: expected a mask of bools, found torch.int64"):
        cross_entropy_reward_loss(SCORES[:2], OTHERS[:2], torch.tensor([1, 2]))


@pytest.mark.parametrize("loss", [pairwise_reward_loss, cross_entropy_reward_loss, tokenwise_reward_loss])
def test_no_loss_looks_at_a_number_on_the_device(loss):
    """A step would wait for it. Tensors of the meta device have none, so that looking raises."""
    scores = (
        torch.randn(3, 5, device="meta") if loss is tokenwise_reward_loss else torch.randn(3, device="meta")
    )
    label = (
        () if loss is pairwise_reward_loss else (torch.ones(scores.shape, dtype=torch.bool, device="meta"),)
    )
    assert loss(scores, scores, *label, torch.randn(3, device="meta")).shape == (3,)


def test_divergent_part_by_hand():
    # prompt 5 6, answers "7 2" and "7 8 9 2": they part at column 3, the longer one ends before column 6
    chosen_ids, rejected_ids = torch.tensor([[5, 6, 7, 2, 0, 0, 0]]), torch.tensor([[5, 6, 7, 8, 9, 2, 0]])
    chosen_mask, rejected_mask = (ids.ne(0).long() for ids in (chosen_ids, rejected_ids))
    compared, chosen_at, rejected_at = divergent_part(chosen_ids, rejected_ids, chosen_mask, rejected_mask)
    assert compared.tolist() == [[False, False, False, True, True, True, False]]
    assert chosen_at.tolist() == [
        [0, 1, 2, 3, 3, 3, 3]
    ]  # beyond its end the shorter one's last token, its score
    assert rejected_at.tolist() == [[0, 1, 2, 3, 4, 5, 5]]


def test_tokenwise_loss_by_hand():
    # values at columns 3, 4, 5: chosen 1, then its score again; rejected 0, 2, -1. Differences 1, -1, 2:
    # (0.31326 + 1.31326 + 0.12693) / 3 = 0.58448
    chosen = torch.tensor([[9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0]])
    rejected = torch.tensor([[9.0, 9.0, 9.0, 0.0, 2.0, -1.0, -1.0]])
    compared = torch.tensor([[0, 0, 0, 1, 1, 1, 0]])
    assert tokenwise_reward_loss(chosen, rejected, compared).tolist() == pytest.approx([0.58448], abs=1e-5)
    found = tokenwise_reward_loss(chosen, rejected, compared, torch.tensor([0.5]))
    assert found.tolist() == pytest.approx([(softplus(-0.5) + softplus(1.5) + softplus(-1.5)) / 3], abs=1e-5)


def test_padding_and_the_common_part_count_for_nothing():
    """What stands in the padding of either answer, ids or values, and how much of it there is."""
    torch.manual_seed(0)
    ids = torch.tensor([[5, 6, 7, 2], [5, 6, 8, 2]])
    values = torch.randn(2, 4)

    def loss(width, pad, filler):
        wide = torch.full((2, width), pad)
        wide[:, :4] = ids
        mask = torch.arange(width).expand(2, width) < torch.tensor([[4], [4]])
        compared, one, other = divergent_part(wide[:1], wide[1:], mask[:1], mask[1:])
        held = torch.full((2, width), filler)
        held[:, :4] = values
        held[:, :2] = filler if filler == filler else 0.0
        return tokenwise_reward_loss(held[:1].gather(1, one), held[1:].gather(1, other), compared)

    expected = -torch.nn.functional.logsigmoid(values[0, 2:] - values[1, 2:]).mean()
    for width, pad, filler in ((4, 0, 0.0), (9, 0, 1e9), (6, 2, float("nan"))):
        assert float(loss(width, pad, filler)) == pytest.approx(float(expected), rel=1e-6)


def test_an_answer_that_only_goes_on_is_compared_from_where_it_does():
    ids, longer = torch.tensor([[5, 2, 0]]), torch.tensor([[5, 2, 9]])
    compared, at, _ = divergent_part(ids, longer, torch.tensor([[1, 1, 0]]), torch.tensor([[1, 1, 1]]))
    assert compared.tolist() == [[False, False, True]]
    assert at.tolist() == [[0, 1, 1]]
