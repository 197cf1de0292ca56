"""Importing optimum-habana, with what its last release (1.21.2) needs to be imported and to train.

Retired together with the `optimum` runtime.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.utils.checkpoint

_MODELS = "optimum.habana.transformers.models."


@cache
def optimum_habana() -> Any:
    """The package `optimum.habana.transformers`, with its trainer and training arguments imported.

    Its model zoo imports torchvision for the image tokenizer of glm4v, which language models never use, and a Gaudi's
    image has a torchvision; where there is none, an empty module stands in during the import alone.
    """
    with _own_pip_first(), _torchvision_importable():
        import optimum.habana.transformers.modeling_utils
        import optimum.habana.transformers.trainer
        import optimum.habana.transformers.training_args

    import optimum.habana

    _mend_checkpointing()
    _mend_checkpointing_under_deepspeed()
    _mend_caches()
    _mend_opt_positions()
    return optimum.habana


def adapt_transformers() -> None:
    """Put optimum-habana's models and generation in the place of transformers', for good; its training arguments do it too."""
    optimum_habana().transformers.modeling_utils.adapt_transformers_to_gaudi()


@contextmanager
def _own_pip_first() -> Iterator[None]:
    """At its import it asks `pip list` for the version of the Gaudi plugin, and fails where another Python's pip answers."""
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        yield
    finally:
        os.environ["PATH"] = path


def _mend_checkpointing() -> None:
    """Let `--gradient_checkpointing` in lazy mode recompute a layer from all of its inputs.

    optimum-habana's copy of `torch.utils.checkpoint.checkpoint` calls one of torch's private functions by position;
    since torch gave that function an argument `early_stop` before the layer's own, the layer's first input is taken for
    it, and the rest move up by one. All that the copy does otherwise is to refuse reentrant checkpoints, so torch's own
    with that refusal stands in. Where torch's function has no such argument, nothing is changed.
    """
    private = torch.utils.checkpoint._checkpoint_without_reentrant_generator
    if "early_stop" not in inspect.signature(private).parameters:
        return
    from optimum.habana.transformers import gradient_checkpointing

    plain = torch.utils.checkpoint.checkpoint  # now: the trainer puts the other in its place

    def checkpoint(function: Any, *args: Any, use_reentrant: bool | None = None, **kwargs: Any) -> Any:
        return plain(function, *args, use_reentrant=False, **kwargs)

    gradient_checkpointing.checkpoint = checkpoint


def _mend_checkpointing_under_deepspeed() -> None:
    """Let `--gradient_checkpointing` with `--deepspeed` hand on what a layer gives.

    optimum-habana's trainer puts DeepSpeed's recomputation in the place of torch's just before it turns checkpointing on,
    and makes a tuple of what that gives: of a layer's single tensor, a tuple of its rows. torch's own gives what the layer
    gave.
    """
    from transformers import modeling_utils

    plain = torch.utils.checkpoint.checkpoint
    enable = modeling_utils.PreTrainedModel.gradient_checkpointing_enable

    @wraps(enable)
    def gradient_checkpointing_enable(self: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(modeling_utils.checkpoint, "__name__", "") == "hpu_deepspeed_checkpointing":
            modeling_utils.checkpoint = torch.utils.checkpoint.checkpoint = plain
        enable(self, *args, **kwargs)

    modeling_utils.PreTrainedModel.gradient_checkpointing_enable = gradient_checkpointing_enable


def _mend_caches() -> None:
    """Let fp32 weights generate under bf16 autocast, as PPO's rollouts do with `--full_finetune`.

    A cache takes the dtype of the weights, the keys come in autocast's, and `index_copy_` wants them alike. Nothing is
    lost by keeping bf16 numbers in fp32.
    """
    for module in [module for name, module in sys.modules.items() if name.startswith(_MODELS)]:
        cache = vars(module).get("KVCache")
        if cache is None or cache.__module__ != module.__name__:  # it has none, or another model's
            continue
        update = vars(cache)["update"]  # a static method, or one with a `self`
        if isinstance(update, staticmethod):
            cache.update = staticmethod(_in_the_dtype_of_the_cache(update.__func__))
        else:
            cache.update = _in_the_dtype_of_the_cache(update)
    _mend_gptj()


def _in_the_dtype_of_the_cache(update: Any) -> Any:
    def updated(*inputs: Any) -> Any:
        *first, cache, new, dim, index, length = inputs
        return update(*first, cache, new.to(cache.dtype), dim, index, length)

    return updated


def _mend_gptj() -> None:
    """GPT-J makes bf16 keys of whatever it is given, and writes them past its cache's `update` as well."""
    from optimum.habana.transformers.models.gptj.modeling_gptj import GaudiGPTJAttention

    forward = GaudiGPTJAttention.forward

    def forward_with_cache(self: Any, *inputs: Any, layer_past: Any = None, **keywords: Any) -> Any:
        if layer_past is not None and torch.is_autocast_enabled("hpu"):
            layer_past = tuple(states.to(torch.bfloat16) for states in layer_past)
        return forward(self, *inputs, layer_past=layer_past, **keywords)

    GaudiGPTJAttention.forward = forward_with_cache


def _mend_opt_positions() -> None:
    """Count an OPT's positions as its training does: each row's own, from the first token that is no padding.

    With a cache, optimum-habana takes the number of tokens so far, padding among them, for the position of the last of
    them: at least one too many. The answers are other ones then than the weights give.
    """
    from optimum.habana.transformers.models.opt.modeling_opt import GaudiOPTLearnedPositionalEmbedding

    def forward(
        self: Any,
        attention_mask: torch.Tensor,
        past_key_values_length: int = 0,
        position_ids: torch.Tensor | None = None,
        token_idx: torch.Tensor | None = None,
    ) -> torch.Tensor:
        mask = attention_mask.long()
        positions = torch.cumsum(mask, dim=1) * mask - 1
        if past_key_values_length and token_idx is not None:
            positions = positions.index_select(1, token_idx - 1)
        else:
            positions = positions[:, past_key_values_length:]
        return torch.nn.Embedding.forward(self, positions + self.offset)

    GaudiOPTLearnedPositionalEmbedding.forward = forward


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
