"""From measured turns to the table: medians, ratios, and the proof that both sides did the same work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any

from sides import Side
from workload import Size

#: losses of one batch may differ by this much, relative to the larger of them and 0.01
LOSS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """A claim: `ours` takes less CPU time than `theirs`. `check`: how far the first losses of both can be compared."""

    name: str
    theirs: str
    ours: str
    unit: str
    check: str


UPDATE, EPOCH = "CPU s per update", "CPU s per epoch"
ROWS = (
    Row("ppo-separate-bf16", "TRL 1.12 PPO", "separate bf16", UPDATE, "ppo"),
    Row("ppo-shared-bf16", "TRL 1.12 PPO", "shared bf16", UPDATE, "none"),
    Row("ppo-separate-fp32", "TRL 1.12 PPO", "separate fp32", UPDATE, "ppo"),
    Row("ppo-classic-shared-fp32", "TRL 0.11.4 PPO", "shared fp32", UPDATE, "all"),
    Row("sft-unpacked-fp32", "TRL SFT fp32", "SFT fp32", EPOCH, "all"),
    Row("sft-packed-fp32", "TRL SFT packed fp32", "SFT packed fp32", EPOCH, "all"),
    Row("sft-defaults", "TRL SFT defaults", "SFT defaults", EPOCH, "all"),
    Row("rm-fp32", "TRL RM fp32", "RM fp32", EPOCH, "all"),
    Row("rm-defaults", "TRL RM defaults", "RM defaults", EPOCH, "all"),
)
AGAINST = {
    "TRL 1.12 PPO": "TRL 1.12.0 PPOTrainer, fp32, separate critic",
    "TRL 0.11.4 PPO": "TRL 0.11.4 PPOTrainer.step, fp32, value head",
    "TRL SFT fp32": "TRL 1.16.0 SFTTrainer, fp32",
    "TRL SFT packed fp32": "TRL 1.16.0 SFTTrainer, fp32, packing",
    "TRL SFT defaults": "TRL 1.16.0 SFTTrainer, its defaults (bf16, gradient checkpointing)",
    "TRL RM fp32": "TRL 1.16.0 RewardTrainer, fp32",
    "TRL RM defaults": "TRL 1.16.0 RewardTrainer, its defaults (bf16, gradient checkpointing)",
}
#: what a turn's work is, in words
WORK = {
    "prompt_tokens": "prompt tokens",
    "answer_tokens": "answer tokens",
    "tokens": "tokens",
    "targets": "targets",
    "optimizer_steps": "optimizer steps",
}
#: facts in which two sides of a row must agree in every turn
SAME = ("digest", "prompt_tokens", "answer_tokens", "tokens", "token_ids_sum", "targets", "optimizer_steps")


def entry(row: Row, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One element of the result."""
    ours, theirs = (median(turn["cpu"] for turn in measured[name]) for name in (row.ours, row.theirs))
    return {
        "name": row.name,
        "against": AGAINST[row.theirs],
        "ours": round(ours, 3),
        "theirs": round(theirs, 3),
        "ratio": round(theirs / ours, 3),
        "unit": row.unit,
    }


def unequal_work(row: Row, measured: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the sides of a row did not do alike, a line each."""
    lines = []
    for number, turns in enumerate(zip(measured[row.ours], measured[row.theirs], strict=True)):
        for fact in SAME:
            ours, theirs = (turn.get(fact) for turn in turns)
            if ours != theirs:
                lines.append(f"{row.name}: turn {number}: {fact} {ours} here, {theirs} there")
    return lines


def unequal_losses(name: str, difference: float | None) -> list[str]:
    """A line if the losses of the two sides differ by more than rounding."""
    if difference is None or difference <= LOSS_TOLERANCE:
        return []
    return [
        f"{name}: losses of one batch differ by {difference:.1e} (relative), more than {LOSS_TOLERANCE:.0e}"
    ]


def loss_difference(row: Row, ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """Largest relative difference of the losses of three steps on one batch in fp32; None where there is nothing to compare.

    Infinite where a loss is not finite. Where answers end before their limit, TRL 1.12 learns the value of one place more (behind the end): of these, "ppo"
    compares the policy's loss alone; of answers of full length both losses.
    """
    if row.check == "none":
        return None
    pairs = []
    for number, (left, right) in enumerate(zip(ours["check"], theirs["check"], strict=True)):
        compared = slice(0, 1) if row.check == "ppo" and number == 0 else slice(None)
        pairs += list(zip(left[compared], right[compared], strict=True))
    if not all(map(math.isfinite, chain(*pairs))):  # `max` would pass a NaN over
        return math.inf
    return max(abs(one - other) / max(abs(one), abs(other), 0.01) for one, other in pairs)


def phase_flops(side: Side, size: Size, turn: dict[str, Any]) -> dict[str, float]:
    """Floating-point operations of each phase that must be done: weights times real tokens. SFT is one phase.

    Attention, norms and the like are not in it (about a tenth more), nor is anything done for padding.
    """
    if "targets" in turn:
        trunk, head = size.trunk_parameters * turn["tokens"], size.head_parameters * turn["targets"]
        return {"optimise": 3 * 2.0 * (trunk + head)}
    answers = turn["answer_tokens"]
    tokens = turn["prompt_tokens"] + answers
    trunk, head = 2.0 * size.trunk_parameters * tokens, 2.0 * size.head_parameters * answers
    passes, heads = side.passes
    flops = {
        "rollout": trunk + head,
        "score": passes * trunk + heads * head,
        "optimise": 3 * size.epochs * (side.trunks * trunk + head),
    }
    if not passes:  # scoring by reference and value cannot be told from optimisation there
        flops["score"] = trunk
        flops["optimise"] += 2 * (trunk + head)
    return flops


def phase_shares(
    side: Side, size: Size, turns: list[dict[str, Any]], rates: dict[str, float]
) -> dict[str, list[float]]:
    """{phase: [median CPU seconds, share of the matmul limit]} of a PPO update."""
    rate = rates["bf16" if side.bf16 else "fp32"]
    found = {}
    for phase in ("rollout", "score", "optimise"):
        seconds = median(turn["phases"][phase] for turn in turns)
        share = median(phase_flops(side, size, turn)[phase] / turn["phases"][phase] for turn in turns) / rate
        found[phase] = [round(seconds, 3), round(share, 3)]
    return found


def finished(
    row: Row,
    known: dict[str, Side],
    measured: dict[str, list[dict[str, Any]]],
    ready: dict[str, dict[str, Any]],
    size: Size,
    rates: dict[str, float],
) -> dict[str, Any]:
    """`entry` with all else that is known of a row whose sides took their turns.

    turns, phases: of each side. losses_differ: None where they cannot be compared. unequal: what the sides did not do
    alike; empty where all is well. work: of the last turn. limits: GFLOP/s of matrix products.
    """
    difference = loss_difference(row, ready[row.ours], ready[row.theirs])
    both = {"theirs": row.theirs, "ours": row.ours}
    return {
        **entry(row, measured),
        "sides": {"theirs": row.theirs, "ours": f"ours, {row.ours}"},
        "turns": {who: [round(turn["cpu"], 3) for turn in measured[name]] for who, name in both.items()},
        "phases": {
            who: phase_shares(known[name], size, measured[name], rates)
            for who, name in both.items()
            if "phases" in measured[name][0]
        },
        "losses_differ": difference,
        "unequal": unequal_work(row, measured) + unequal_losses(row.name, difference),
        "work": {fact: measured[row.ours][-1][fact] for fact in WORK if fact in measured[row.ours][-1]},
        "limits": {kind: round(rate / 1e9) for kind, rate in rates.items()},
    }
