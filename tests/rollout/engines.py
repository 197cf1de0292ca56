"""The engines that go through `test_conformance.py`, each as a function that makes one: of a tokenizer and options."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from backends.base import DecodingOptions
from backends.hpu import HPUBackend
from rlhf_hw.rollout.compact import CompactEngine
from rlhf_hw.rollout.generate import GenerateEngine


def _on_a_gaudi(tokenizer: Any, **options: Any) -> GenerateEngine:
    """As PPO there: one width of prompts, one of answers."""
    backend = HPUBackend()
    shapes = options.pop("shapes", None) or backend.rollout_shapes([8], 12)
    return GenerateEngine(tokenizer, shapes, options=backend.generation_options(), **options)


ENGINES: dict[str, Callable[..., Any]] = {
    "generate": GenerateEngine,
    "compact": lambda tokenizer, **options: CompactEngine(
        tokenizer, options=DecodingOptions(1, 512), **options
    ),
    # prompts two at a time, ended rows noticed late
    "compact-late": lambda tokenizer, **options: CompactEngine(
        tokenizer, options=DecodingOptions(5, 12), **options
    ),
    "hpu": _on_a_gaudi,
}
#: set to run the suite on another device (tests/hpu/test_rollout_conformance.py does)
DEVICE = os.environ.get("CONFORMANCE_DEVICE", "cpu")
if DEVICE == "hpu":
    HPUBackend().prepare()  # before models are made: optimum-habana puts its own in their places
NAMES = ["hpu"] if DEVICE == "hpu" else [name for name in ENGINES if name != "hpu"]
