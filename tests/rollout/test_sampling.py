"""Inverting the cumulative distribution at a number that belongs to the row."""

import torch

from rlhf_hw.rollout.sampling import InverseCDFProcessor, mix_seed, sample_tokens, uniforms


def test_uniform_numbers_belong_to_their_seed() -> None:
    together = uniforms([3, 1, 4], 5, torch.device("cpu"))
    assert torch.equal(together[1], uniforms([1], 5, torch.device("cpu"))[0])
    assert torch.equal(together[1, :3], uniforms([1], 3, torch.device("cpu"))[0])
    assert together.min() >= 0
    assert together.max() < 1


def test_tokens_partition_the_unit_interval_by_their_probability() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    points = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 0.999])
    assert sample_tokens(logits.expand(6, 3), points).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Not at the ends of the interval either, where rounding pushes."""
    generator = torch.Generator().manual_seed(0)
    last_below_one = 1 - 2**-24
    for _ in range(200):
        logits = torch.randn(1, 50, generator=generator)
        impossible = torch.rand(1, 50, generator=generator) < 0.5
        impossible[0, [0, -1]] = True
        logits[impossible] = float("-inf")
        for point in (0.0, last_below_one):
            token = sample_tokens(logits, torch.tensor([point]))
            assert logits[0, token] > float("-inf")


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)  # a bf16 sum of 1/4096 stalls long before 1
    assert sample_tokens(logits, torch.tensor([0.75])).item() == 3072


def test_the_processor_leaves_the_drawn_token_alone_possible() -> None:
    processor = InverseCDFProcessor(torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    scores = torch.zeros(2, 4)
    first = processor(torch.zeros(2, 3, dtype=torch.long), scores)
    second = processor(torch.zeros(2, 4, dtype=torch.long), scores)
    assert first.argmax(-1).tolist() == [0, 3]
    assert second.argmax(-1).tolist() == [3, 0]
    assert torch.isfinite(first).sum(-1).tolist() == [1, 1]


def test_mixed_seeds_fit_a_generator_and_differ() -> None:
    seeds = {mix_seed(run, update, part) for run in range(20) for update in range(20) for part in range(5)}
    seeds |= {mix_seed(run, update) for run in range(20) for update in range(20)}
    assert len(seeds) == 2400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
    torch.Generator().manual_seed(max(seeds))


def test_the_token_is_the_one_that_searchsorted_finds() -> None:
    """Bit for bit, also where cumulative sums repeat and where a number is one of them."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(500, 97, generator=generator) * 6
    logits[:, 30:40] = float("-inf")
    cumulative = logits.softmax(-1).cumsum(-1).cummax(-1).values
    drawn = torch.rand(500, generator=generator)
    on_a_step = cumulative.gather(1, torch.randint(97, (500, 1), generator=generator))[:, 0]
    for uniform in (drawn, on_a_step):
        bound = (uniform * cumulative[:, -1])[:, None]
        found = torch.searchsorted(cumulative, bound, right=True).squeeze(1).clamp(max=96)
        assert torch.equal(sample_tokens(logits, uniform), found)
