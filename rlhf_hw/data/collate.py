"""Rows of token ids → right-padded tensors.

Shapes: B rows, T padded length (what `pad_length`, the backend's shape policy, makes of the longest row).
`attention_mask` comes from true lengths and never from the padding id, which may well be the EOS that is learnt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED_LABEL = -100

Row = Mapping[str, Any]
PadLength = Callable[[int], int]


def longest(length: int) -> int:
    """The shape policy of a device that does not mind: pad to the longest row."""
    return length


@dataclass(frozen=True)
class SFTCollator:
    """Rows of `input_ids`, `loss_mask` (and `seq_lengths`) → a batch of [B, T] int64 tensors.

    `input_ids`; `attention_mask` (1 on real tokens); `labels` (the id where it is a target, else -100; the model
    shifts them). The first token of a sequence follows nothing and is never a target.

    Packed rows also give `position_ids`, which start at 0 in each sequence, and `sequence_ids`: 1 for the tokens
    of a row's first sequence, 2 for its second, …, 0 on padding. Token i may attend to token j ≤ i where both
    have the same sequence id.

    `with_places`: batches also have `target_places` [N], where the N targets stand in the batch read row by row. How many
    a batch has is then known without asking the device, which would have to finish its work first. Not where shapes are
    fixed: N changes from batch to batch.
    """

    pad_token_id: int
    pad_length: PadLength = longest
    with_places: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        input_ids_B_T, attention_mask_B_T = pad_rows(
            [row["input_ids"] for row in rows], self.pad_token_id, self.pad_length
        )
        labels_B_T = torch.full_like(input_ids_B_T, IGNORED_LABEL)
        position_ids_B_T = torch.zeros_like(input_ids_B_T)
        sequence_ids_B_T = torch.zeros_like(input_ids_B_T)
        for index, row in enumerate(rows):
            ids = torch.as_tensor(row["input_ids"])
            is_target = torch.as_tensor(row["loss_mask"]).bool()
            positions, sequences = _sequences(row.get("seq_lengths") or [len(ids)])
            is_target = is_target & (positions > 0)
            labels_B_T[index, : len(ids)] = torch.where(is_target, ids, IGNORED_LABEL)
            position_ids_B_T[index, : len(ids)] = positions
            sequence_ids_B_T[index, : len(ids)] = sequences
        batch = {"input_ids": input_ids_B_T, "attention_mask": attention_mask_B_T, "labels": labels_B_T}
        if any("seq_lengths" in row for row in rows):
            batch |= {"position_ids": position_ids_B_T, "sequence_ids": sequence_ids_B_T}
        if self.with_places:
            batch["target_places"] = (labels_B_T.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
        return batch


@dataclass(frozen=True)
class PairCollator:
    """B pairs → `input_ids`, `attention_mask` [2B, T]: the B chosen rows first, then the B rejected ones.

    And `margin` [B], fp32: by how much the chosen answer should lead, 0 where the row does not say.

    One batch for both sides: one forward pass, and under DDP one gradient reduction.
    """

    pad_token_id: int
    pad_length: PadLength = longest

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        chosen = [row["chosen_input_ids"] for row in rows]
        rejected = [row["rejected_input_ids"] for row in rows]
        input_ids, attention_mask = pad_rows(chosen + rejected, self.pad_token_id, self.pad_length)
        margin = torch.tensor([row.get("margin") or 0.0 for row in rows])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "margin": margin}


def pad_rows(
    rows: Sequence[Sequence[int]], pad_token_id: int, pad_length: PadLength = longest
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids padded on the right, mask that is 1 on real tokens), both [B, T] int64."""
    width = pad_length(max(map(len, rows)))
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


def _sequences(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(position in its sequence, number of its sequence from 1) of each token of a row of such sequences."""
    counts = torch.as_tensor(lengths)
    numbers = torch.repeat_interleave(torch.arange(1, len(counts) + 1), counts)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.arange(len(numbers)) - starts, numbers
