"""Which prompts are answered when: a pure function of seed, update and process."""

from collections import Counter
from typing import Any

import pytest

from rlhf_hw.trainers.prompts import PromptSchedule

ROWS = [{"input_ids": [number], "prompt": str(number)} for number in range(10)]


def dealt(schedule: PromptSchedule, updates: int, world: int, batch: int) -> list[tuple[int, int]]:
    """(prompt, seed) of each answer of all processes, update by update."""
    found: list[tuple[int, int]] = []
    for update in range(updates):
        for rank in range(world):
            share = schedule.batch(update, rank, world, batch)
            found += [(ids[0], seed) for ids, seed in zip(share.input_ids, share.seeds, strict=True)]
    return found


@pytest.mark.parametrize("batch", [1, 3, 4, 10, 25])
def test_each_prompt_comes_once_a_turn(batch: int) -> None:
    prompts = [prompt for prompt, _ in dealt(PromptSchedule(ROWS, 0), 100 // batch, 1, batch)]
    for start in range(0, len(prompts) - 9, 10):
        assert sorted(prompts[start : start + 10]) == list(range(10))


def test_every_turn_has_an_order_of_its_own() -> None:
    prompts = [prompt for prompt, _ in dealt(PromptSchedule(ROWS, 0), 10, 1, 10)]
    turns = Counter(tuple(prompts[start : start + 10]) for start in range(0, 100, 10))
    assert len(turns) == 10


def test_however_many_processes_share_an_update_they_answer_the_same() -> None:
    one = dealt(PromptSchedule(ROWS, 5), 7, 1, 8)
    assert dealt(PromptSchedule(ROWS, 5), 7, 2, 4) == one
    assert dealt(PromptSchedule(ROWS, 5), 7, 8, 1) == one


def test_no_seed_is_used_twice_and_another_run_uses_others() -> None:
    seeds = [seed for _, seed in dealt(PromptSchedule(ROWS, 0), 100, 2, 4)]
    others = [seed for _, seed in dealt(PromptSchedule(ROWS, 1), 100, 2, 4)]
    assert len(set(seeds + others)) == 1600


def test_an_update_is_the_same_whatever_was_asked_before() -> None:
    """A resumed run has asked for nothing before."""
    schedule = PromptSchedule(ROWS, 3)
    before: Any = [schedule.batch(update, 0, 1, 4) for update in range(9)]
    assert PromptSchedule(ROWS, 3).batch(7, 0, 1, 4) == before[7]
