"""Running a decoder on the real tokens of a batch alone, where a new shape costs nothing.

The rows of a batch are put end to end: every matrix product of the decoder then works on real tokens only, and
attention goes row by row, causal, without a mask. Padding is half of what a PPO step on answers of ragged length would
else work out, and two thirds of a batch of ragged examples. Packed rows are the same thing with other borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import nn
from transformers import AttentionInterface

from rlhf_hw.models.wrapping import attending_by, foreign_module, is_peft, trunk, unwrap, without_adapters

ATTENTION = "rlhf_hw_rows"
#: whose attention goes through transformers' interface, and whose positions are what `position_ids` says
FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "gpt2", "opt"})
#: adapters that change weights and no tokens
ADAPTERS = frozenset({"LORA"})

#: where modules keep the function that works activations out again: transformers' and FSDP's
_CHECKPOINTS = ("_gradient_checkpointing_func", "checkpoint_fn")

_lengths: ContextVar[Sequence[int]] = ContextVar("lengths of the rows that are put end to end")
_unpadded: WeakSet[nn.Module] = WeakSet()


class RealTokens(NamedTuple):
    """The N real tokens of a batch [B, T], row by row.

    `input_ids`, `position_ids` [1, N]; `lengths`: of the sequences, in order; `mask` [B, T] (bool): where they stood.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: list[int]
    mask: torch.Tensor


def leave_padding_out(model: nn.Module) -> bool:
    """From now on `model`'s passes over whole sequences may leave padding out; whether they will."""
    known = can_leave_padding_out(model)
    if known:
        _unpadded.add(trunk(model))
    return known


def can_leave_padding_out(model: nn.Module) -> bool:
    """Whether passes over whole sequences can leave padding out: of families of which it is known to change nothing but
    rounding (`FAMILIES`), under torch's own attention."""
    inner = without_adapters(unwrap(model))
    adapters = unwrap(model).peft_config.values() if is_peft(unwrap(model)) else ()
    return attends_by_interface(inner) and all(adapter.peft_type in ADAPTERS for adapter in adapters)


def attends_by_interface(inner: Any) -> bool:
    """Whether the attention of a model without adapters is torch's own, by way of transformers' interface."""
    return (
        inner.config.model_type in FAMILIES
        and inner.config._attn_implementation == "sdpa"
        # a model may call itself Llama and attend in a way of its own
        and foreign_module(inner) is None
    )


def leaves_padding_out(model: nn.Module) -> bool:
    """Whether `model` runs on real tokens alone."""
    return trunk(model) in _unpadded


def real_tokens(input_ids: torch.Tensor, mask: torch.Tensor) -> RealTokens:
    """The real tokens of `input_ids` [B, T]: those at which `mask` [B, T] is not zero.

    `mask` may number the sequences of a row from 1 (a packed row holds several, one after another).
    """
    real = mask.bool()
    row = torch.arange(mask.shape[0], device=mask.device)[:, None]
    number = (row * (mask.shape[1] + 1) + mask)[real]
    lengths = torch.unique_consecutive(number, return_counts=True)[1]
    starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    positions = torch.arange(len(number), device=mask.device) - starts
    return RealTokens(input_ids[real][None], positions[None], lengths.tolist(), real)


@contextmanager
def rows_apart(model: nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """Inside, `model` takes a batch [1, N] for sequences of these `lengths`, end to end.

    So it does where activations of a pass in here are worked out again, later, in the backward pass.
    """
    config = without_adapters(unwrap(model)).config
    decoder = trunk(model)
    if decoder.training:
        _remember_rows(decoder, config)
    with _by_rows(config, lengths):
        yield


def _remember_rows(decoder: nn.Module, config: Any) -> None:
    """Let every layer of `decoder` that works its activations out again do so with the rows of the pass they are of."""
    for module in decoder.modules():
        for name in _CHECKPOINTS:
            plain = vars(module).get(name)
            if plain is not None and not isinstance(plain, _InItsRows):
                setattr(module, name, _InItsRows(plain, config))


class _InItsRows:
    """A function like `torch.utils.checkpoint.checkpoint`, whose passes are all run with the rows of the first."""

    def __init__(self, checkpoint: Callable[..., Any], config: Any) -> None:
        self.checkpoint, self.config = checkpoint, config

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        lengths = _lengths.get(None)
        if lengths is None:
            return self.checkpoint(function, *args, **kwargs)

        def in_rows(*inputs: Any, **options: Any) -> Any:
            with _by_rows(self.config, lengths):
                return function(*inputs, **options)

        return self.checkpoint(in_rows, *args, **kwargs)


@contextmanager
def _by_rows(config: Any, lengths: Sequence[int]) -> Iterator[None]:
    token = _lengths.set(lengths)
    try:
        with attending_by(config, ATTENTION):
            yield
    finally:
        _lengths.reset(token)


def attend_by_rows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each sequence: query [1, H, N, D], key and value [1, G, N, D] → ([1, N, H, D], None).

    In fp32, whatever the precision of the rest: the backward pass of a CPU's kernel takes twice as long in bf16.
    """
    with torch.autocast(query.device.type, enabled=False):
        found = _attend_by_rows(query.float(), key.float(), value.float(), dropout, scaling, sliding_window)
    return found.to(query.dtype), None


def _attend_by_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    lengths = list(_lengths.get())
    grouped = key.shape[1] != query.shape[1]
    answers = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        window = None
        if sliding_window is not None and q.shape[2] > sliding_window:
            everything = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)
            window = everything.tril() & everything.triu(1 - sliding_window)
        answers.append(
            nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=window,
                dropout_p=dropout,
                is_causal=window is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(answers, dim=2).transpose(1, 2).contiguous()


AttentionInterface.register(ATTENTION, attend_by_rows)
