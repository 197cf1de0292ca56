"""Which engine draws a run's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends import Backend
from backends.shapes import RolloutShapes
from rlhf_hw.compat.continuous_batching import why_no_continuous_batching
from rlhf_hw.errors import UserError
from rlhf_hw.models.wrapping import without_adapters
from rlhf_hw.rollout.compact import CompactEngine, why_not_compact
from rlhf_hw.rollout.engine import RolloutEngine
from rlhf_hw.rollout.generate import GenerateEngine


def check_engine(name: str, backend: Backend) -> None:
    """Refuse an engine that cannot run here, whatever the model.

    Raises:
        BackendError: the device cannot.
        UserError: the installed transformers cannot.
    """
    if name in ("compact", "continuous"):
        backend.decoding_options(name)
    missing = why_no_continuous_batching() if name == "continuous" else None
    if missing is not None:
        raise UserError(f"--rollout_engine continuous: {missing}; use compact or generate")


def choose_engine(
    name: str,
    backend: Backend,
    policy: Any,
    tokenizer: Any,
    shapes: RolloutShapes,
    *,
    batch_size: int | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> RolloutEngine:
    """The engine called `name` ("auto": the backend's choice) for `policy`; `say` is told which one it is, and why.

    A model that `compact` or `continuous` cannot run is answered by `generate`.

    Raises:
        BackendError, UserError: see `check_engine`.
    """
    check_engine(name, backend)
    wanted = backend.rollout_engine() if name == "auto" else None
    chosen, reason = (name, "as asked") if wanted is None else (wanted.value, wanted.reason)
    if chosen == "compact":
        options = backend.decoding_options()
        hindrance = why_not_compact(policy)
        if hindrance is None:
            say(f"rollout engine: compact ({reason})")
            return CompactEngine(tokenizer, shapes, batch_size, options)
        reason = f"not compact: {hindrance}"
    if chosen == "continuous":
        from rlhf_hw.rollout.continuous import (
            ContinuousEngine,
            why_not_continuous,
        )  # not in every transformers

        hindrance = why_not_continuous(policy)
        if hindrance is None:
            say(f"rollout engine: continuous ({reason})")
            return ContinuousEngine(tokenizer, shapes, batch_size, backend.decoding_options(chosen))
        reason = f"not continuous: {hindrance}"
    say(f"rollout engine: generate ({reason})")
    generation = backend.generation_options(without_adapters(policy))
    return GenerateEngine(tokenizer, shapes, batch_size, generation)
