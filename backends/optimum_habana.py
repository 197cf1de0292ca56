"""Importing optimum-habana, with what its last release (1.21.2) needs to be imported and to train.

Retired together with the `optimum` runtime.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@cache
def optimum_habana() -> Any:
    """The package `optimum.habana.transformers`, with its trainer and training arguments imported.

    Its model zoo imports torchvision for the image tokenizer of glm4v, which language models never use, and a Gaudi's
    image has a torchvision; where there is none, an empty module stands in during the import alone.
    """
    with _torchvision_importable():
        import optimum.habana.transformers.modeling_utils
        import optimum.habana.transformers.trainer
        import optimum.habana.transformers.training_args

    import optimum.habana

    return optimum.habana


class _Absent(ModuleType):
    """A module of which nothing can be had."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name}: torchvision is not installed")


@contextmanager
def _torchvision_importable() -> Iterator[None]:
    if find_spec("torchvision") is not None:
        yield
        return
    import transformers.utils.import_utils  # noqa: F401 - it decides for good whether there is a torchvision

    names = ("torchvision", "torchvision.transforms")
    for name in names:
        sys.modules[name] = _Absent(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    vars(sys.modules["torchvision"])["transforms"] = sys.modules["torchvision.transforms"]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
