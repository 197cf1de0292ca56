"""Continuous batching whose tokens can be drawn from outside came to transformers in 5.23.

(4.53 to 4.57 have a first form of it, in which every row is sampled from one stream of random numbers.) Retired when
optimum-habana's stack (transformers 4.55) is dropped.
"""

from __future__ import annotations

import transformers
from packaging.version import Version


def why_no_continuous_batching() -> str | None:
    """Why the installed transformers cannot run the engine `continuous`; None where it can."""
    if Version(transformers.__version__) < Version("5.23"):
        return f"it needs transformers 5.23 or later, and {transformers.__version__} is installed"
    return None
