"""One side in several processes, as torchrun starts them: what they did together, told by the first of them.

Between turns the others wait in a broadcast, which costs them nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

#: facts that are the sum of those of each process
SUMMED = (
    "cpu",
    "delayed",
    "waiting",
    "prompt_tokens",
    "answer_tokens",
    "tokens",
    "token_ids_sum",
    "targets",
)
OF_EACH = ("cpu", "wall", "delayed", "waiting")


def together(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts of a side from those of its processes; `processes` keeps the times of each.

    Raises:
        ValueError: they took unequal numbers of optimizer steps.
    """
    first = each[0]
    steps = {facts.get("optimizer_steps") for facts in each}
    if len(steps) > 1:
        raise ValueError(f"processes of one side took {sorted(map(str, steps))} optimizer steps")
    whole = dict(first)
    whole |= {name: sum(facts[name] for facts in each) for name in SUMMED if name in first}
    if "wall" in first:
        whole["wall"] = max(facts["wall"] for facts in each)
        whole["processes"] = [{name: facts[name] for name in OF_EACH} for facts in each]
    if "digest" in first:
        whole["digest"] = sum(facts["digest"] for facts in each) % 2**64
    if "phases" in first:
        whole["phases"] = {name: sum(facts["phases"][name] for facts in each) for name in first["phases"]}
    return whole


class Team:
    """The processes of this side. To be asked once their process group is there, which a trainer makes."""

    def __init__(self) -> None:
        self.size = int(os.environ["WORLD_SIZE"])
        self.speaks = int(os.environ["RANK"]) == 0

    @classmethod
    def of_environment(cls) -> Team | None:
        """The team that torchrun started; None where this process is alone."""
        return cls() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None

    def together(self, facts: dict[str, Any]) -> dict[str, Any]:
        """All facts, in the process that speaks; nothing in the others."""
        from torch import distributed

        each: list[Any] | None = [None] * self.size if self.speaks else None
        distributed.gather_object(facts, each)
        return together(each) if each is not None else {}

    def told(self, word: str) -> str:
        """What the process that speaks was told."""
        from torch import distributed

        words = [word]
        distributed.broadcast_object_list(words, src=0)
        return words[0]
