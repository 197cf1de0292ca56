"""torch.hpu.random: the seeds and states of the HPU generators.

A seed gives the numbers that it gives on the CPU. torch.manual_seed seeds the HPUs as well, which on hardware
it does not: there, call torch.hpu.random.manual_seed_all.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from habana_torch_plugin_emulator import _C
from habana_torch_plugin_emulator.memory import Device, device_index

__all__ = [
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]


def _generator(device: Device) -> torch.Generator:
    return _C.default_generator(device_index(device))


def get_rng_state(device: Device = "hpu") -> torch.Tensor:
    """The state of one device's generator, a CPU tensor of bytes."""
    return _generator(device).get_state()


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state(index) for index in range(_C.device_count())]


def set_rng_state(new_state: torch.Tensor, device: Device = "hpu") -> None:
    _generator(device).set_state(new_state.cpu())


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def manual_seed(seed: int) -> None:
    """Seeds the current device."""
    _generator(None).manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seeds every device with the same number."""
    for index in range(_C.device_count()):
        _generator(index).manual_seed(int(seed))


def seed() -> int:
    """Seeds the current device from the system's randomness and returns the seed."""
    return _generator(None).seed()


def seed_all() -> int:
    """Seeds every device with one number from the system's randomness and returns it."""
    number = seed()
    manual_seed_all(number)
    return number


def initial_seed() -> int:
    return _generator(None).initial_seed()


def join_torch_manual_seed() -> None:
    """Lets torch.manual_seed and torch.seed seed the HPUs too."""
    stock = torch.random._seed_custom_device

    def seed_custom_device(number: int) -> None:
        stock(number)
        manual_seed_all(number)

    torch.random._seed_custom_device = seed_custom_device
