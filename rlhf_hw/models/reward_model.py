"""A reward model: a decoder with a scalar head, read at the last real token."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_hw.compat.activation_checkpointing import RecomputesActivations
from rlhf_hw.errors import UserError
from rlhf_hw.models.positions import Selection
from rlhf_hw.models.right_padded import leaves_masks_out, without_mask
from rlhf_hw.models.unpadded import leaves_padding_out, real_tokens, rows_apart
from rlhf_hw.models.weights import load_weights_into
from rlhf_hw.models.wrapping import part_of_state, without_adapters

STATISTICS_FILE = "reward_statistics.json"


@dataclass(frozen=True)
class RewardStatistics:
    """Mean and standard deviation of the scores of `count` chosen answers, by which PPO normalises."""

    mean: float
    std: float
    count: int

    def save(self, directory: str | Path) -> None:
        (Path(directory) / STATISTICS_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> RewardStatistics | None:
        """The statistics saved with a reward model, or None where there are none."""
        path = Path(directory) / STATISTICS_FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None


def last_real_token(attention_mask: torch.Tensor) -> torch.Tensor:
    """Index [B] of the last real token of each row of `attention_mask` [B, T], whatever the padding side."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.bool() * positions).argmax(dim=1)


class RewardModel(RecomputesActivations, nn.Module):
    """Scores sequences. Wraps a transformers sequence-classification model with one label (PEFT or not).

    transformers finds the end of a row by comparing tokens with the pad id: wrong where the pad token is the EOS
    token. This module goes by the attention mask alone, so a score depends on nothing but its own row.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        inner = self.inner
        if not hasattr(inner, "score"):
            raise UserError(
                f"{type(inner).__name__} has no `score` head on a decoder; reward models need a causal "
                "architecture such as Llama, OPT, GPT-2 or Qwen"
            )

    @property
    def inner(self) -> Any:
        """The transformers model without PEFT around it."""
        return without_adapters(self.model)

    @property
    def head(self) -> nn.Module:
        return self.inner.score

    @property
    def config(self) -> Any:
        return self.inner.config

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, right_padded: bool = False
    ) -> torch.Tensor:
        """Last hidden states [B, T, H]; what stands at padding means nothing."""
        backbone = self.inner.base_model
        if leaves_padding_out(self.inner):
            real = real_tokens(input_ids, attention_mask)
            with rows_apart(self.inner, real.lengths):
                found = backbone(
                    input_ids=real.input_ids, position_ids=real.position_ids, use_cache=False
                ).last_hidden_state[0]
            return found.new_zeros(*input_ids.shape, found.shape[-1]).index_put((real.mask,), found)
        if right_padded and leaves_masks_out(self.inner):
            with without_mask(self.inner):
                return backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(backbone.forward).parameters:
            inputs["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp(min=0)  # for left padding
        outputs = backbone(**inputs)
        return outputs.last_hidden_state

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        every_token: bool = False,
        right_padded: bool = False,
    ) -> torch.Tensor:
        """Scores [B], fp32, of the rows of `input_ids` [B, T]; with `every_token` the head's output [B, T] everywhere.

        `right_padded`: padding is known to stand behind the rows; it may then go without a mask.
        """
        hidden = self.hidden_states(input_ids, attention_mask, right_padded=right_padded)
        if every_token:
            return self._head(hidden)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self._head(hidden[rows, last_real_token(attention_mask)])

    def values_at(
        self, where: Selection, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Head outputs [N], fp32, at the positions `where`: the model as a critic."""
        return self._head(self.hidden_states(input_ids, attention_mask)[where])

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores in the head's own precision (fp32): in bf16 close answers would tie."""
        head = self.head
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(next(head.parameters()).dtype)).squeeze(-1).float()

    # What the trainer asks of a model
    def role_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that are this model's alone."""
        return self.parameters()

    def checkpointed_models(self) -> list[nn.Module]:
        return [self.model]

    def save_pretrained(
        self, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Write a plain transformers or PEFT directory. `state_dict` is this module's, where the trainer gathered it."""
        own = None if state_dict is None else part_of_state(state_dict, "model.")
        self.model.save_pretrained(directory, state_dict=own)

    def load_weights(self, directory: str | Path) -> None:
        """Read back, to the bit, what `save_pretrained` wrote."""
        load_weights_into(self.model, directory)
