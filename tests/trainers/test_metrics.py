"""Averages weigh every observation the same, over micro-batches and processes; times are those of the phases."""

import time
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rlhf_hw.trainers.metrics import PhaseTimer, RunningAverages, TokenRate


@pytest.fixture
def accelerator() -> Any:
    return Accelerator(cpu=True)


class ThreeProcesses:
    """Stands for two more processes that have added the same: sums come out threefold."""

    num_processes = 3
    device = torch.device("cpu")

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return tensor * 3


def test_the_mean_is_over_observations_not_over_additions(accelerator: Any) -> None:
    averages = RunningAverages()
    averages.add("loss", torch.tensor(10.0), 1)
    averages.add("loss", torch.tensor(2.0), 3)
    averages.add("flag", 1.0)
    averages.add("flag", 0.0)
    assert averages.flush(accelerator) == {"flag": 0.5, "loss": 3.0}
    assert averages.flush(accelerator) == {}


def test_the_mean_does_not_depend_on_how_many_processes_say_the_same(accelerator: Any) -> None:
    averages = RunningAverages()
    averages.add("loss", torch.tensor(10.0), torch.tensor(4))
    assert averages.flush(ThreeProcesses()) == {"loss": 2.5}


def test_averages_hold_no_graph() -> None:
    averages = RunningAverages()
    averages.add("loss", torch.ones(1, requires_grad=True).sum(), 1)
    assert not averages._sums["loss"].requires_grad


def test_the_token_rate_counts_real_tokens_of_all_processes() -> None:
    rate = TokenRate()
    assert rate.flush(ThreeProcesses()) == {}
    begin = time.perf_counter()
    rate.add(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    time.sleep(0.05)
    found = rate.flush(ThreeProcesses())["speed/tokens_per_second"]
    assert 9 / (time.perf_counter() - begin) <= found <= 9 / 0.05
    time.sleep(0.01)
    assert rate.flush(ThreeProcesses())["speed/tokens_per_second"] == 0


def test_phases_add_up_and_wait_for_the_device() -> None:
    waited = []
    timer = PhaseTimer(lambda: waited.append(1))
    for _ in range(2):
        with timer.phase("one"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), timer.phase("two"):
        raise ZeroDivisionError
    found = timer.flush()
    assert len(waited) == 6
    assert 0.02 <= found["time/one"] < 1
    assert found["time/total"] == found["time/one"] + found["time/two"]
    assert timer.flush() == {}
