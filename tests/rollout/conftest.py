"""Fixtures of the rollout tests."""

from collections.abc import Callable
from typing import Any

import pytest
from engines import ENGINES, NAMES


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes an engine: `engine(tokenizer, shapes=…, batch_size=…)`."""
    return ENGINES[request.param]
