"""An exponential average of a policy's trained weights (Polyak averaging), kept beside the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from rlhf_hw.errors import UserError
from rlhf_hw.models.weights import load_weights_into, save_weights

EMA_DIRECTORY = "actor_ema"


class PolicyAverage:
    """After each optimizer step: average = decay · average + (1 - decay) · weight, of every weight that trains.

    It starts as the weights at the start, holds them in their own precision on their device, and is written and read
    as the policy itself is: a whole model, or an adapter. (DeepSpeed-Chat's `moving_average`.)

    Args:
        policy: the causal language model, PEFT or not.
        decay: share of the average that stays, from 0 to below 1.
        weights: those to average; not given: all of `policy` that train.
    """

    def __init__(
        self, policy: nn.Module, decay: float, weights: Sequence[nn.Parameter] | None = None
    ) -> None:
        self.policy = policy
        self.decay = decay
        self._given = weights
        self._averages = [weight.detach().clone() for weight in self._weights()]

    def _weights(self) -> list[nn.Parameter]:
        found = self.policy.parameters() if self._given is None else self._given
        return [weight for weight in found if weight.requires_grad]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights in, once a step."""
        for average, weight in zip(self._averages, self._weights(), strict=True):
            average.lerp_(weight, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the policy's weights are the averages; afterwards they are its own again, to the bit.

        What is done to the weights inside is done to the averages.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self._averages, self._weights(), strict=True):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)

    def save(self, directory: str | Path) -> Path:
        """Write the averaged policy into `directory`/actor_ema, loadable with from_pretrained; that directory."""
        target = Path(directory) / EMA_DIRECTORY
        with self.in_place():
            save_weights(self.policy, target)
        return target

    def load(self, directory: str | Path) -> None:
        """Continue from what `save` wrote below `directory`, to the bit.

        Raises:
            UserError: nothing was.
        """
        if not (Path(directory) / EMA_DIRECTORY).is_dir():
            raise UserError(
                f"--enable_ema: {directory} has no {EMA_DIRECTORY}, its run kept no average; leave the flag out to go on"
            )
        with self.in_place():
            load_weights_into(self.policy, Path(directory) / EMA_DIRECTORY)
