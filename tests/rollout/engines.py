"""The engines that go through `test_conformance.py`, each as a function that makes one: of a tokenizer and options."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from decoders import DECODERS

from backends.base import DecodingOptions
from backends.hpu import HPUBackend
from rlhf_hw.compat.continuous_batching import why_no_continuous_batching
from rlhf_hw.models.unpadded import FAMILIES
from rlhf_hw.rollout.compact import CompactEngine
from rlhf_hw.rollout.generate import GenerateEngine


def _on_a_gaudi(tokenizer: Any, **options: Any) -> GenerateEngine:
    """As PPO there: one width of prompts, one of answers."""
    backend = HPUBackend()
    shapes = options.pop("shapes", None) or backend.rollout_shapes([8], 12)
    return GenerateEngine(tokenizer, shapes, options=backend.generation_options(), **options)


def _continuous(tokenizer: Any, **options: Any) -> Any:
    """Prompts of more than five tokens are read in parts; thousands of them go in turns."""
    from rlhf_hw.rollout.continuous import ContinuousEngine

    options["batch_size"] = options.pop("batch_size", None) or 64
    return ContinuousEngine(tokenizer, options=DecodingOptions(1, 5), **options)


ENGINES: dict[str, Callable[..., Any]] = {
    "generate": GenerateEngine,
    "compact": lambda tokenizer, **options: CompactEngine(
        tokenizer, options=DecodingOptions(1, 512, attention_in_fp32=True), **options
    ),
    # prompts two at a time, ended rows noticed late
    "compact-late": lambda tokenizer, **options: CompactEngine(
        tokenizer, options=DecodingOptions(5, 12), **options
    ),
    "hpu": _on_a_gaudi,
}
#: the Gaudi stack has none, which test_choice.py holds
if why_no_continuous_batching() is None:
    ENGINES["continuous"] = _continuous
#: set to run the suite on another device (tests/hpu/test_rollout_conformance.py does)
DEVICE = os.environ.get("CONFORMANCE_DEVICE", "cpu")
if DEVICE == "hpu":
    HPUBackend().prepare()  # before models are made: optimum-habana puts its own in their places
NAMES = ["hpu"] if DEVICE == "hpu" else [name for name in ENGINES if name != "hpu"]


def decoders_of(engine: str) -> tuple[str, ...]:
    """The small decoders that `engine` answers with."""
    return tuple(name for name in DECODERS if engine != "continuous" or name in FAMILIES)
