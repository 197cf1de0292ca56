"""Random numbers: a seed gives on the device what it gives on the CPU, and states can be kept and put back."""

from __future__ import annotations

import pytest
import torch


def draws(**options: object) -> list[torch.Tensor]:
    torch.manual_seed(11)
    weights = torch.ones(5, **options)  # type: ignore[call-overload]
    return [
        torch.rand(4, **options),  # type: ignore[call-overload]
        torch.randn(4, **options),  # type: ignore[call-overload]
        torch.randint(0, 100, (4,), **options),  # type: ignore[call-overload]
        torch.randperm(6, **options),  # type: ignore[call-overload]
        torch.multinomial(weights, 3),
        torch.bernoulli(weights / 2),
        torch.empty(4, **options).exponential_(),  # type: ignore[call-overload]
        torch.nn.functional.dropout(weights, 0.5),
        torch.native_dropout(weights, 0.5, True)[0],
        torch.rand_like(weights),
    ]


def test_manual_seed_gives_the_numbers_of_the_cpu() -> None:
    for found, expected in zip(draws(device="hpu"), draws(device="cpu"), strict=True):
        assert found.device.type == "hpu"
        assert torch.equal(found.cpu(), expected)


def test_drawing_on_the_device_leaves_the_cpu_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draws_on_device = torch.rand(10, device="hpu").sum()
    torch.native_dropout(torch.ones(10, device="hpu"), 0.5, True)
    assert draws_on_device > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_own_generators() -> None:
    generator = torch.Generator(device="hpu")
    assert generator.device == torch.device("hpu", 0)
    generator.manual_seed(5)
    assert generator.initial_seed() == 5
    first = torch.rand(3, device="hpu", generator=generator)
    state = generator.get_state()
    second = torch.rand(3, device="hpu", generator=generator)
    twin = generator.clone_state()
    generator.set_state(state)
    assert torch.equal(torch.rand(3, device="hpu", generator=generator), second)
    assert torch.equal(twin.get_state(), generator.get_state())
    assert not torch.equal(first, second)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.cpu(), expected)


def test_a_generator_of_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Expected a 'hpu' device type for generator but found 'cpu'"):
        torch.rand(2, device="hpu", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'hpu'"):
        torch.rand(2, generator=torch.Generator(device="hpu"))


def test_states_of_torch_hpu_random() -> None:
    torch.hpu.random.manual_seed_all(3)
    states = torch.hpu.random.get_rng_state_all()
    first = torch.rand(2, device="hpu")
    torch.hpu.random.set_rng_state_all(states)
    assert torch.equal(torch.rand(2, device="hpu"), first)
    torch.hpu.manual_seed(3)
    assert torch.equal(torch.rand(2, device="hpu"), first)
    assert torch.hpu.initial_seed() == 3
    state = torch.hpu.get_rng_state("hpu:0")
    assert state.device.type == "cpu"
    torch.hpu.set_rng_state(state, 0)
    assert torch.hpu.seed() == torch.hpu.initial_seed()


def test_fork_rng_puts_the_state_back() -> None:
    torch.manual_seed(0)
    before = torch.hpu.get_rng_state()
    with torch.random.fork_rng(devices=[0], device_type="hpu"):
        torch.rand(5, device="hpu")
        assert not torch.equal(torch.hpu.get_rng_state(), before)
    assert torch.equal(torch.hpu.get_rng_state(), before)
