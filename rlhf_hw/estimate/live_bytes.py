"""Counting the bytes that live while code runs on fake tensors: real shapes, types and lifetimes, no storage."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What bytes are counted under. Held from step to step:
FROZEN, TRAINED, GRADIENTS = "frozen weights", "trained weights", "gradients"
#: in which gradients are collected, to be sent
BUCKETS = "buckets"
#: alive within a step:
COPIES, LOGITS, CACHE, ACTIVATIONS = "autocast copies", "logits", "KV cache", "activations"

_CPU = torch.device("cpu")
#: Bytes by what they are counted under.
Bytes = Counter[str]


class LiveBytes(TorchDispatchMode):
    """Inside, what every operator's results take is counted until their storage is freed; views count once.

    The highest sum is kept for each stretch between two `mark`s, with what it was made of. Scratch memory inside a kernel
    is not seen. `vocabulary`: tensors whose last dimension is this are logits.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.live: Bytes = Counter()
        self.total = 0
        self.cache_length = 0  #: keys and values of so many positions are a cache; 0: there is none
        self.entries = 0  #: how often a model's first layer was entered: tells its passes apart
        self.peaks: dict[Any, tuple[int, Bytes]] = {}
        self._mark: Any = None
        self._held: dict[int, tuple[Any, str, int]] = {}

    def restart(self) -> None:
        """Forget the peaks so far."""
        self.peaks, self.entries = {}, 0
        self.mark(None)

    def found(self) -> dict[Any, Bytes]:
        """What lived at the peak of each stretch."""
        return {name: there for name, (_, there) in self.peaks.items()}

    def mark(self, name: Any) -> None:
        """A new stretch begins (or goes on, where `name` was given before)."""
        self._mark = name
        self._look()

    def count_as(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """From now on these tensors count under `kind`."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            self._count(tensor, kind)
            reference, before, size = self._held[key]
            self.live[before] -= size
            self.live[kind] += size
            self._held[key] = (reference, kind, size)

    def rest_as(self, kind: str) -> None:
        """Everything that counts as activations and lives now counts under `kind`."""
        for key, (reference, before, size) in list(self._held.items()):
            if before == ACTIVATIONS:
                self._held[key] = (reference, kind, size)
                self.live[before] -= size
                self.live[kind] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked more often than all else together
            return _CPU
        if func is torch.ops.aten._local_scalar_dense.default:
            return False  # "is nothing padded?", the one question that models ask of data: there is padding
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor):
                self._count(result, self._kind(func, args, result))
        self._look()
        return results

    def _kind(self, func: Any, args: Any, result: torch.Tensor) -> str:
        if result.dim() and result.shape[-1] == self.vocabulary:
            return LOGITS
        if func is torch.ops.aten._to_copy.default:
            known = self._held.get(args[0].untyped_storage()._cdata)
            if known is not None and known[1] in (FROZEN, TRAINED, COPIES):
                return COPIES
        if self.cache_length and result.dim() == 4 and result.shape[-2] == self.cache_length:
            return CACHE
        return ACTIVATIONS

    def _count(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def freed(_: Any) -> None:
            _, now, size = self._held.pop(key)
            self.live[now] -= size
            self.total -= size

        self._held[key] = (weakref.ref(storage, freed), kind, size)
        self.live[kind] += size
        self.total += size

    def _look(self) -> None:
        if self.total > self.peaks.get(self._mark, (-1, None))[0]:
            self.peaks[self._mark] = (self.total, Counter(self.live))
