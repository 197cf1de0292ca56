"""What one trainer leaves behind in the process must not reach the next test's."""

import os
from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """transformers 4 writes its precision into the environment, and accelerate keeps its state for the process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
