"""A model that was evaluated before it trains must still be put into DistributedDataParallel.

accelerate 1.15 marks a model that it prepared for evaluation, and hands a marked model back as it is when the trainer
prepares it for training: several processes would then train apart without a word (1.10 has no such mark). Retired by an
accelerate that tells the two preparations apart.
"""

from __future__ import annotations

from torch import nn

_MARK = "_is_accelerate_prepared"


def forget_preparation(model: nn.Module) -> None:
    """Let `model` be prepared again. For a model that is not wrapped."""
    vars(model).pop(_MARK, None)
