"""These tests train on `hpu` tensors: on a Gaudi, or on this project's emulator."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True, scope="session")
def gaudi_software() -> None:
    """Fails where there is none: a suite that passed by skipping these would say nothing of Gaudis."""
    if find_spec("habana_frameworks") is None:
        pytest.fail("tests/hpu needs the emulator in hpu_emulator/; `make test` installs it", pytrace=False)
