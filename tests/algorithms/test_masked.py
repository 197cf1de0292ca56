"""Statistics over real tokens."""

import pytest
import torch

from rlhf_hw.algorithms.masked import (
    Moments,
    combine,
    masked_mean,
    masked_moments,
    masked_sum,
    masked_variance,
    masked_whiten,
    require_right_padded,
    whiten_with,
)

VALUES = torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # real: 1, 2, 6


def test_statistics_by_hand():
    assert masked_sum(VALUES, MASK) == 9  # 1 + 2 + 6
    assert masked_mean(VALUES, MASK) == 3  # 9 / 3
    assert masked_sum(VALUES, MASK, dim=1).tolist() == [3, 6]
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [1.5, 6]  # 3 / 2, 6 / 1
    assert masked_variance(VALUES, MASK) == 7  # ((-2)² + (-1)² + 3²) / (3 - 1) = 14 / 2
    root = 7**0.5
    assert torch.allclose(
        masked_whiten(VALUES, MASK), torch.tensor([[-2 / root, -1 / root, 0], [3 / root, 0, 0]])
    )
    assert torch.allclose(  # without the shift the mean 3 stays
        masked_whiten(VALUES, MASK, shift_mean=False),
        torch.tensor([[3 - 2 / root, 3 - 1 / root, 0], [3 + 3 / root, 0, 0]]),
    )


def test_bool_and_float_masks_mean_the_same():
    assert torch.equal(masked_whiten(VALUES, MASK), masked_whiten(VALUES, MASK.bool()))
    assert masked_mean(VALUES, MASK) == masked_mean(VALUES, MASK.bool())


def test_whitened_values_have_mean_0_and_variance_1_and_unshifted_ones_keep_their_mean():
    torch.manual_seed(0)
    values, mask = torch.randn(8, 16) * 3 + 5, torch.rand(8, 16) < 0.7
    whitened = masked_whiten(values, mask)
    assert torch.allclose(masked_mean(whitened, mask), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(masked_variance(whitened, mask), torch.tensor(1.0))
    kept = masked_whiten(values, mask, shift_mean=False)
    assert torch.allclose(masked_mean(kept, mask), masked_mean(values, mask))


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_whitening_shares_with_combined_moments_equals_whitening_the_whole(parts):
    torch.manual_seed(parts)
    values, mask = torch.randn(8, 16) * 2 - 7, torch.rand(8, 16) < 0.6
    mask[0] = False  # with 8 parts, one process has no real token at all
    shares = list(zip(values.tensor_split(parts), mask.tensor_split(parts), strict=True))
    moments = combine([masked_moments(*share) for share in shares])
    together = torch.cat([whiten_with(*share, moments) for share in shares])
    assert torch.allclose(together, masked_whiten(values, mask), atol=1e-6)


def test_moments_survive_being_gathered_as_rows():
    parts = [masked_moments(VALUES[:1], MASK[:1]), masked_moments(VALUES[1:], MASK[1:])]
    rows = torch.stack([torch.stack(part) for part in parts])
    merged = combine([Moments(*row) for row in rows])
    # {1, 2}: count 2, mean 1.5, deviations 0.5.  {6}: 1, 6, 0.  Union: 3, 3, 0.5 + 2 * 1.5² + 1 * 3² = 14
    assert [float(x) for x in parts[0]] == [2, 1.5, 0.5]
    assert [float(x) for x in merged] == [3, 3, 14]


def test_float32_moments_keep_their_digits_under_a_large_offset():
    torch.manual_seed(0)
    values = torch.randn(64, 512) + 10_000  # sum of squares about 3e12: float32 would lose the variance
    exact = values.double()
    merged = combine([masked_moments(part) for part in values.split(16)])
    for moments in (masked_moments(values), merged):
        assert moments.mean.dtype == torch.float32
        assert float(moments.mean) == pytest.approx(float(exact.mean()), rel=1e-7)
        assert float(moments.variance) == pytest.approx(float(exact.var()), rel=1e-5)


def test_bfloat16_is_summed_in_float32():
    ones = torch.ones(1, 1000, dtype=torch.bfloat16)  # bfloat16 has no 257
    total = masked_sum(ones, torch.ones_like(ones))
    assert total.dtype == torch.float32
    assert total == 1000


def test_mean_of_nothing_is_nan_and_variance_of_one_value_is_refused():
    assert masked_mean(VALUES, torch.zeros_like(MASK)).isnan()
    assert masked_sum(VALUES, torch.zeros_like(MASK)) == 0
    with pytest.raises(ValueError, match="at least 2 real tokens, found 1"):
        masked_variance(VALUES, torch.tensor([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="found 0"):
        masked_whiten(VALUES, torch.zeros_like(MASK))
    with pytest.raises(ValueError, match="at least one"):
        combine([])


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"values \[2, 3\], mask \[3\]"):
        masked_mean(VALUES, torch.ones(3))


def test_a_real_token_after_padding_is_refused():
    require_right_padded(torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]]))
    with pytest.raises(ValueError, match="row 1"):
        require_right_padded(torch.tensor([[1, 1, 0], [1, 0, 1]]))
