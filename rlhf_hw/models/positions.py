"""Running a causal language model with its head only where it is needed.

The head's [B, T, V] output is the largest tensor of a training step, and most of it (prompts, padding) is thrown
away. A pre-hook on the head hands it the chosen positions only. It works with every decoder whose head is a
module (Llama, GPT-2, OPT, Qwen, …), inside PEFT, DDP and autocast, and keeps what a model does after its head
(scaling, soft-capping).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from rlhf_hw.models.unpadded import leaves_padding_out, real_tokens, rows_apart
from rlhf_hw.models.wrapping import unwrap


class SelectedLogits(NamedTuple):
    """`logits` [N, V] and the head's input `hidden` [N, H] at the N chosen positions, row by row."""

    logits: torch.Tensor
    hidden: torch.Tensor


class Positions(NamedTuple):
    """N places in a batch [B, T]: place n lies in row `rows[n]` and column `columns[n]`. Indexes as a tuple does."""

    rows: torch.Tensor
    columns: torch.Tensor


#: Which outputs of a batch are wanted: a mask [B, T] (bool), or places. A mask gives as many as it marks, a number
#: that only the data knows; places give as many as there are of them, whatever the data.
Selection: TypeAlias = "torch.Tensor | Positions"


def every_position(batch: int, length: int, device: torch.device) -> Positions:
    """All B·T places of a batch, row by row."""
    places = torch.arange(batch * length, device=device)
    return Positions(places // length, places % length)


def answer_positions(response_mask: torch.Tensor, width: int) -> tuple[Positions, Positions]:
    """(outputs that predict the answers' tokens, the tokens themselves): B·width places each, whatever the data.

    `response_mask` [B, T] (bool) marks one answer a row, of at most `width` tokens and not in the first column.
    Places beyond an answer's end are somewhere in its row: for the caller to mask.
    """
    batch, length = response_mask.shape
    starts = response_mask.int().argmax(dim=1, keepdim=True)
    columns = (starts + torch.arange(width, device=starts.device)).clamp(max=length - 1)
    rows = torch.arange(batch, device=starts.device)[:, None].expand(batch, width)
    tokens = Positions(rows.reshape(-1), columns.reshape(-1))
    return Positions(tokens.rows, (tokens.columns - 1).clamp(min=0)), tokens


def next_token_positions(targets: torch.Tensor) -> torch.Tensor:
    """Positions [B, T] whose output predicts a target, given which tokens [B, T] (bool) are targets.

    The output at t predicts the token at t+1, so this is `targets` moved one step to the left; the first token of
    a row can never be predicted.
    """
    moved = torch.zeros_like(targets)
    moved[:, :-1] = targets[:, 1:]
    return moved


def logits_at(model: nn.Module, where: Selection, **inputs: Any) -> SelectedLogits:
    """Run `model(**inputs)` and return logits and head inputs at the positions `where`, which are real tokens.

    `model` may be wrapped (PEFT, DDP). Virtual tokens that prompt tuning puts in front are passed over. `inputs` of a
    model that leaves padding out are `input_ids` [B, T] and an `attention_mask` [B, T], which may number the sequences
    of packed rows from 1.
    """
    if isinstance(where, torch.Tensor) and leaves_padding_out(model):
        real = real_tokens(inputs["input_ids"], inputs["attention_mask"])
        with rows_apart(model, real.lengths):
            there = where[real.mask][None]
            return _logits_at(model, there, input_ids=real.input_ids, position_ids=real.position_ids)
    return _logits_at(model, where, **inputs)


def _logits_at(model: nn.Module, where: Selection, **inputs: Any) -> SelectedLogits:
    captured: list[torch.Tensor] = []
    length = inputs["input_ids"].shape[1]

    def select(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0][:, -length:][where]
        captured.append(hidden)
        return (hidden, *args[1:])

    handle = unwrap(model).get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return SelectedLogits(logits, captured[0])


def packed_attention_mask(sequence_ids: torch.Tensor) -> torch.Tensor:
    """Block-diagonal causal mask [B, 1, T, T] (bool, True = may attend) for rows that hold several sequences.

    `sequence_ids` [B, T] numbers the sequences of a row from 1; 0 is padding. Padding attends to padding, so that
    no row of the mask is empty (an empty row is NaN in fused attention).
    """
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]
    length = sequence_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=sequence_ids.device).tril()
    return (same & causal)[:, None]
