"""Accelerators by name: what there is to know of a card that is not in this machine. No torch is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A card, as its maker's data sheet has it; nothing here was measured.

    memory: GiB, as drivers show it. bf16: dense TFLOP/s of its matrix units. bandwidth: of its memory, GB/s. attention: what the backend
    would choose for it. quantized: whether weights can be held in 4 bits.
    """

    name: str
    backend: str
    memory: float
    bf16: float
    bandwidth: float
    link: float  #: GB/s to the cards beside it, each way
    attention: str = "sdpa"
    quantized: bool = True
    compact: bool = True  #: whether answers are drawn by a decode loop of our own
    pads_to: int = 8  #: lengths are multiples of this many tokens


_CUDA, _HPU = "cuda", "hpu"
CARDS = {
    card.name: card
    for card in (
        Card("a100-40", _CUDA, 39.6, 312, 1555, 300),
        Card("a100-80", _CUDA, 80, 312, 2039, 300),
        Card("h100-80", _CUDA, 79.6, 989, 3350, 450),
        Card("h200-141", _CUDA, 140.4, 989, 4800, 450),
        Card("l4-24", _CUDA, 22.5, 121, 300, 32),
        Card("a10-24", _CUDA, 22.5, 125, 600, 32),
        Card("rtx4090-24", _CUDA, 24, 165, 1008, 32),
        Card("gaudi2-96", _HPU, 96, 432, 2450, 262, "eager", False, False),
        Card("gaudi3-128", _HPU, 128, 1835, 3700, 525, "eager", False, False),
    )
}
