"""`rlhf-hw estimate STAGE …`: the memory that a stage will take, before anything loads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from backends import resolve
from backends.base import DecodingOptions
from backends.cards import CARDS
from rlhf_hw.arguments.estimate import Asked, parse_estimate
from rlhf_hw.cli.entry import command
from rlhf_hw.estimate.advice import HEADROOM, Step, largest_micro_batch, micro_batch, remedies, usable
from rlhf_hw.estimate.roles import Conditions
from rlhf_hw.estimate.stages import Estimate, estimate
from rlhf_hw.estimate.table import lines, print_tables

_ATTENTION = {"eager": "eager"}  #: all others keep what torch's fused attention keeps


@command("estimate")
def main(argv: Sequence[str] | None = None) -> int:
    """Parse, estimate, print."""
    asked = parse_estimate(sys.argv[1:] if argv is None else argv)
    conditions = conditions_of(asked)
    found = estimate(asked.run, conditions, asked.sizes)
    largest = steps = None
    if asked.advice:
        largest = largest_micro_batch(asked.run, conditions, asked.sizes)
        if found.peak > usable(conditions):
            steps = remedies(asked.run, conditions, asked.sizes)
    if asked.json:
        print(json.dumps(as_json(asked, found, largest, steps), indent=2))
        return 0
    for line in (*asked.run.opening, *asked.notes):
        print(line, file=sys.stderr)
    print_tables(found, lines(asked, found, largest, steps))
    return 0


def conditions_of(asked: Asked) -> Conditions:
    """Where the stage would run: on the card that was named, or as the backend of this machine answers.

    Raises:
        BackendError: the backend cannot be had, or has no such precision.
    """
    run = asked.run
    said = run.training.said()
    bf16, fp16 = said.get("bf16"), said.get("fp16")
    asked_attention = run.model.attn_implementation
    if asked.card is not None:
        card = CARDS[asked.card]
        autocast = "fp16" if fp16 else "no" if bf16 is False else "bf16"
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
        frozen, attention, memory = dtypes[autocast], card.attention, card.memory
        pads_to, quantized, name, foreach = card.pads_to, card.quantized, asked.card, True
        compact, apart, reserves, process = card.compact, False, True, 0
        prefill = DecodingOptions().prefill_tokens
    else:
        backend = resolve(run.hardware.device, run.hardware.hpu_settings(run.given, said))
        precision = backend.precision(bf16, fp16)
        autocast, frozen = precision.autocast, precision.frozen_dtype
        attention = backend.attention_implementation(precision).value
        memory = backend.memory_statistics().limit / 2**30
        if backend.memory_is_the_machines:
            memory /= asked.processes
        pads_to = backend.shape_policy().pad_length(1)
        compact = backend.rollout_engine().value == "compact"
        prefill = (backend.decoding_options() if compact else DecodingOptions()).prefill_tokens
        apart, reserves = backend.leaves_padding_out, backend.memory_is_taken_when_asked_for
        process = backend.taken_by_a_process
        quantized, name, foreach = backend.quantizes, backend.name, backend.optimizer_takes_all
    chosen = attention if asked_attention == "auto" else asked_attention
    return Conditions(
        card=name,
        memory=asked.memory or memory,
        processes=asked.processes,
        autocast=autocast,
        frozen_dtype=frozen,
        attention=_ATTENTION.get(chosen, "sdpa"),
        pads_to=pads_to,
        quantized=quantized,
        compact=compact,
        foreach=foreach,
        reserves=reserves,
        process=process,
        leaves_padding_out=apart,
        prefill_tokens=prefill,
    )


def as_json(
    asked: Asked, found: Estimate, largest: tuple[int, Estimate] | None, steps: list[Step] | None
) -> dict[str, Any]:
    """All that was found; sizes in bytes."""
    conditions = found.conditions
    answer: dict[str, Any] = {
        "stage": found.stage,
        "card": conditions.card,
        "memory": int(conditions.memory * 2**30),
        "headroom": HEADROOM,
        "processes": conditions.processes,
        "precision": conditions.autocast,
        "attention": conditions.attention,
        "roles": {
            role: {"parameters": w.all_parameters, "trained": w.parameters, "bytes": w.bytes}
            for role, w in found.roles.items()
        },
        "phases": {phase.name: {"total": phase.total, "terms": phase.terms} for phase in found.phases},
        "peak": found.peak,
        "peak_phase": found.worst.name,
        "fits": found.peak <= usable(conditions),
        "micro_batch": micro_batch(asked.run),
        "notes": list(asked.notes),
    }
    if asked.advice:
        answer["largest_micro_batch"] = largest[0] if largest else None
        answer["changes"] = [vars(step) for step in steps or []]
    return answer


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
