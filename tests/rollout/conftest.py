"""Fixtures of the rollout tests."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import ENGINES, NAMES


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes an engine: `engine(tokenizer, shapes=…, batch_size=…)`."""
    return ENGINES[request.param]


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage() -> Iterator[None]:
    """transformers' continuous batching collects garbage after each rollout: among all that is imported, half a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
