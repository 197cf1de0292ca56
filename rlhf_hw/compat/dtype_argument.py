"""`from_pretrained(dtype=…)` was `torch_dtype=…` before transformers 4.56.

Retired when optimum-habana's stack (transformers 4.55) is dropped.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from packaging.version import Version

_NAME = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def dtype_argument(dtype: torch.dtype | str) -> dict[str, Any]:
    """Keyword argument for `from_pretrained` that asks for `dtype`."""
    return {_NAME: dtype}
