"""Rollouts by optimum-habana's `generate`: the cache of keys and values, buckets of it, and HPU graphs around it."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from backends.base import BackendError
from backends.hpu_graphs import HPUGraphSettings, replayed_generation

CACHE_SETTINGS = {"reuse_cache", "bucket_size", "bucket_internal"}


@dataclass(frozen=True)
class HPUGeneration:
    """optimum-habana's options of generation under their own names."""

    ignore_eos: bool = True
    reuse_cache: bool = False
    bucket_size: int | None = None
    bucket_internal: bool = False

    def config(self) -> dict[str, Any]:
        """The fields of a generation config."""
        fields: dict[str, Any] = {"reuse_cache": self.reuse_cache, "bucket_internal": self.bucket_internal}
        if self.bucket_size is not None:
            fields["bucket_size"] = self.bucket_size
        return fields

    def contradictions(self, *, by_graphs: bool) -> dict[str, str]:
        """Options that do not go with the others, each with the reason."""
        found = {}
        if self.bucket_internal and self.bucket_size is None:
            found["bucket_internal"] = "give the size of a bucket too, in tokens (--bucket_size)"
        elif self.bucket_internal and by_graphs and not self.reuse_cache:
            # its decoding hands the cache on by being written into, and a replay writes into that of the recording
            found["bucket_internal"] = (
                "with HPU graphs the cache must be one that is kept; give --reuse_cache too"
            )
        if self.bucket_size is not None and not self.bucket_internal:
            if self.reuse_cache:
                found["bucket_size"] = (
                    "a cache that --reuse_cache keeps has its full length from the start; give --bucket_internal too"
                )
            elif not self.ignore_eos:
                found["bucket_size"] = (
                    "with --ignore_eos False optimum-habana ends other answers than without; give --bucket_internal too, "
                    "or leave one of the two out"
                )
        return found

    def check(self, model: Any) -> None:
        """Refuse what optimum-habana cannot do with `model` (a causal language model).

        Raises:
            BackendError: says which option, and what to do.
        """
        name = type(model).__name__
        if self.reuse_cache and not hasattr(model, "allocate_kv_cache"):
            raise BackendError(f"--reuse_cache: {name} keeps no cache in optimum-habana; leave it out")
        if self.bucket_internal and "cache_idx" not in inspect.signature(model.forward).parameters:
            raise BackendError(
                f"--bucket_internal: {name} has no such buckets in optimum-habana; leave it out"
            )


@contextmanager
def generating(
    wanted: HPUGeneration, graphs: HPUGraphSettings | None, model: Any, state: Hashable
) -> Iterator[None]:
    """What a call of `generate` runs in."""
    with ExitStack() as stack:
        if wanted.reuse_cache:
            stack.enter_context(_cache_like_weights(model))
        if graphs is not None:
            # a cache of another shape takes the memory of the last
            stack.enter_context(replayed_generation(model, state, graphs, one_state=wanted.reuse_cache))
        yield


@contextmanager
def _cache_like_weights(model: Any) -> Iterator[None]:
    """A kept cache is made in the dtype that the model's files name: here meanwhile that of its weights."""
    config = model.config
    named, config.torch_dtype = config.torch_dtype, model.dtype
    try:
        yield
    finally:
        config.torch_dtype = named
