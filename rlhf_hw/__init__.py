"""rlhf_hw: supervised fine-tuning, reward modelling and PPO on NVIDIA GPUs, Intel Gaudi HPUs and CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_hw.rlhf import PPOTrainer, RLHFEngine

__version__ = "0.1.0"
__all__ = ["PPOTrainer", "RLHFEngine", "__version__"]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is asked for: torch is not needed to read the version or to launch."""
    if name in ("PPOTrainer", "RLHFEngine"):
        from rlhf_hw import rlhf

        return getattr(rlhf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
