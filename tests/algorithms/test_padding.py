"""Whatever stands in padding changes no output of [B, R] functions and gets no gradient."""

import pytest
import torch

from rlhf_hw.algorithms.advantages import gae
from rlhf_hw.algorithms.losses import policy_loss, value_loss
from rlhf_hw.algorithms.masked import masked_mean, masked_moments, masked_sum, masked_variance, masked_whiten
from rlhf_hw.algorithms.rewards import shape_rewards

BATCH, LENGTH = 5, 7
LENGTHS = torch.tensor([7, 1, 3, 6, 2])
MASK = torch.arange(LENGTH) < LENGTHS[:, None]
SCORES = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])

# name -> (number of [B, R] tensors it takes, the call)
FUNCTIONS = {
    "masked_sum": (1, lambda x: (masked_sum(x, MASK), masked_sum(x, MASK, dim=1))),
    "masked_mean": (1, lambda x: (masked_mean(x, MASK), masked_mean(x, MASK, dim=1))),
    "masked_variance": (1, lambda x: (masked_variance(x, MASK),)),
    "masked_moments": (1, lambda x: masked_moments(x, MASK)),
    "masked_whiten": (1, lambda x: (masked_whiten(x, MASK), masked_whiten(x, MASK, shift_mean=False))),
    "shape_rewards": (1, lambda kl: (shape_rewards(SCORES, kl, MASK, 0.2),)),
    "gae": (2, lambda rewards, values: gae(rewards, values, MASK, 0.99, 0.95)),
    "policy_loss": (3, lambda new, old, advantages: policy_loss(new, old, advantages, MASK, 0.2)),
    "value_loss": (3, lambda values, old, returns: value_loss(values, old, returns, MASK, 0.2)),
}


@pytest.mark.parametrize("garbage", ["random", "huge", "inf", "nan"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_padding_content_never_changes_an_output(name, garbage):
    torch.manual_seed(0)
    arity, function = FUNCTIONS[name]
    clean = [torch.randn(BATCH, LENGTH).masked_fill(~MASK, 0.0) for _ in range(arity)]
    filler = {
        "random": torch.randn(BATCH, LENGTH),
        "huge": torch.randn(BATCH, LENGTH) * 1e30,
        "inf": torch.full((BATCH, LENGTH), float("inf")),
        "nan": torch.full((BATCH, LENGTH), float("nan")),
    }[garbage]
    dirty = [torch.where(MASK, tensor, filler) for tensor in clean]
    for expected, found in zip(function(*clean), function(*dirty), strict=True):
        assert torch.equal(expected, found)
        if found.shape == MASK.shape:
            assert (found[~MASK] == 0).all()


@pytest.mark.parametrize("name", ["policy_loss", "value_loss"])
def test_padding_gets_zero_gradient_even_where_it_holds_nan_or_overflows(name):
    torch.manual_seed(0)
    arity, function = FUNCTIONS[name]
    for filler in (float("nan"), float("inf"), 1e30):
        inputs = [torch.randn(BATCH, LENGTH).masked_fill(~MASK, filler) for _ in range(arity)]
        prediction = inputs[0].requires_grad_()
        function(*inputs).loss.sum().backward()
        assert prediction.grad.isfinite().all()
        assert (prediction.grad[~MASK] == 0).all()
        assert (prediction.grad[MASK] != 0).any()


@pytest.mark.parametrize("name", ["shape_rewards", "gae", "policy_loss", "value_loss"])
def test_wider_padding_changes_nothing(name):
    """What a static-shape device pads a batch to must not change the numbers."""
    torch.manual_seed(0)
    arity, _ = FUNCTIONS[name]
    wide = [torch.randn(BATCH, LENGTH + 4) for _ in range(arity)]
    wide_mask = torch.nn.functional.pad(MASK, (0, 4))
    call = {
        "shape_rewards": lambda mask, kl: (shape_rewards(SCORES, kl, mask, 0.2),),
        "gae": lambda mask, rewards, values: gae(rewards, values, mask, 0.99, 0.95),
        "policy_loss": lambda mask, *tensors: policy_loss(*tensors, mask, 0.2),
        "value_loss": lambda mask, *tensors: value_loss(*tensors, mask, 0.2),
    }[name]
    narrow = call(MASK, *(tensor[:, :LENGTH] for tensor in wide))
    for expected, found in zip(narrow, call(wide_mask, *wide), strict=True):
        assert torch.equal(expected, found[:, :LENGTH])
