"""Supervised fine-tuning: next-token loss on the targets of each example."""

from __future__ import annotations

import math
from typing import Any

import torch

from rlhf_hw.algorithms.losses import selective_log_softmax
from rlhf_hw.algorithms.masked import masked_sum
from rlhf_hw.errors import UserError
from rlhf_hw.models.positions import (
    Positions,
    every_position,
    logits_at,
    next_token_positions,
    packed_attention_mask,
)
from rlhf_hw.models.right_padded import leaves_masks_out, without_mask
from rlhf_hw.models.unpadded import leaves_padding_out
from rlhf_hw.models.wrapping import unwrap, virtual_tokens, without_adapters
from rlhf_hw.trainers.base import StageMixin

IGNORED = -100


def perplexity_metrics(prediction: Any) -> dict[str, float]:
    """Loss (nats a token) and perplexity over a whole evaluation set, every token counting the same."""
    loss = float(prediction.predictions.sum() / prediction.label_ids.sum())
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


class SFTMixin(StageMixin):
    """Trains a causal language model on batches {input_ids, attention_mask, labels} [B, T], right padded.

    Packed batches carry {input_ids, labels, position_ids, sequence_ids} instead. A batch that has `target_places` too
    (`SFTCollator`) never makes the host wait for the device.
    """

    length_columns = ("input_ids",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_metrics = perplexity_metrics

    def count_items(self, batch: dict[str, Any]) -> torch.Tensor:
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        nll, _ = self._row_losses(model, inputs)
        self.tokens.add(
            inputs["attention_mask"] if "attention_mask" in inputs else inputs["sequence_ids"] > 0
        )
        return self.scale_loss(nll.sum(), num_items_in_batch)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """(None, summed loss [B] in nats, number of targets [B])."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.autocast():
            nll, targets = self._row_losses(model, inputs)
        return None, nll, targets

    def _row_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed negative log-likelihood [B] of each row's targets, and how many they are [B]."""
        labels = inputs["labels"]
        if not self.shapes.may_vary and "sequence_ids" not in inputs:
            return self._losses_of_every_position(model, inputs)
        if "target_places" in inputs and not leaves_padding_out(model):
            return self._losses_at(model, inputs, inputs["target_places"])
        targets = labels != IGNORED
        targets[:, 0] = False  # nothing comes before the first token to predict it from
        model_inputs = self._model_inputs(model, inputs)
        where = next_token_positions(targets).view(model_inputs["input_ids"].shape)
        logits = logits_at(model, where, **model_inputs).logits
        losses = -selective_log_softmax(logits, labels[targets])
        counts = targets.sum(dim=1)
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        return losses.new_zeros(len(counts)).index_add(0, rows, losses), counts

    def _losses_at(
        self, model: Any, inputs: dict[str, Any], places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of targets whose `places` [N] are known: nothing here depends on what the device has worked out."""
        labels = inputs["labels"]
        model_inputs = self._model_inputs(model, inputs)
        width = model_inputs["input_ids"].shape[1]  # packed rows may have become one
        before = places - 1
        where = Positions(before // width, before % width)
        if "sequence_ids" not in inputs and leaves_masks_out(model):
            with without_mask(model):
                logits = logits_at(model, where, input_ids=model_inputs["input_ids"]).logits
        else:
            logits = logits_at(model, where, **model_inputs).logits
        losses = -selective_log_softmax(logits, labels.flatten()[places])
        counts = (labels[:, 1:] != IGNORED).sum(dim=1)
        return losses.new_zeros(len(labels)).index_add(0, places // labels.shape[1], losses), counts

    def _losses_of_every_position(
        self, model: Any, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by a head on all positions: how many targets a batch has would be one more shape."""
        labels = inputs["labels"][:, 1:]
        batch, length = labels.shape
        where = every_position(batch, length, labels.device)
        logits = logits_at(model, where, **self._model_inputs(model, inputs)).logits
        targets = labels != IGNORED
        losses = -selective_log_softmax(logits, labels.clamp(min=0).reshape(-1)).view(batch, length)
        return masked_sum(losses, targets, dim=1), targets.sum(dim=1)

    def _model_inputs(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if "sequence_ids" not in inputs:
            return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        packed = {"input_ids": inputs["input_ids"], "position_ids": inputs["position_ids"]}
        if virtual_tokens(model):
            raise UserError(
                "--packing: virtual tokens cannot be put before each packed example; use --peft lora"
            )
        if leaves_padding_out(model):
            return {"input_ids": inputs["input_ids"], "attention_mask": inputs["sequence_ids"]}
        implementation = without_adapters(unwrap(model)).config._attn_implementation
        if implementation == "sdpa":
            return {**packed, "attention_mask": packed_attention_mask(inputs["sequence_ids"])}
        if implementation.startswith("flash"):
            # flash kernels read the boundaries off position_ids, but only where the batch is one long row
            return {name: ids.reshape(1, -1) for name, ids in packed.items()}
        raise UserError(
            f"--packing: attention {implementation!r} cannot keep packed examples apart; use --attn_implementation sdpa"
        )
