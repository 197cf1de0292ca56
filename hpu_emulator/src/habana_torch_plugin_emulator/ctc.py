"""`CTCLoss` with the argument list of the HPU kernel."""

from __future__ import annotations

import torch
from torch import Tensor


class CTCLoss:
    """`CTCLoss.apply(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)`."""

    @staticmethod
    def apply(
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        /,
    ) -> Tensor:
        """log_probs is (T, B, classes), targets (B, longest target) padded on the right with anything.

        The padding, and negative ids in it, are never read: only the first `target_lengths[b]` ids of a row count.
        """
        return torch.nn.functional.ctc_loss(
            log_probs.to(torch.float32),
            targets.clamp_min(0),
            input_lengths,
            target_lengths,
            blank=blank,
            reduction=reduction,
            zero_infinity=zero_infinity,
        )
