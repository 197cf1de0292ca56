"""Kernels with the device's names and argument lists."""

from habana_torch_plugin_emulator import hpu_ops as _hpu_ops  # noqa: F401  (torch.ops.hpu)
from habana_torch_plugin_emulator.attention import FusedSDPA
from habana_torch_plugin_emulator.ctc import CTCLoss
from habana_torch_plugin_emulator.rotary import (
    RotaryPosEmbeddingHelperV1,
    RotaryPosEmbeddingHelperV2,
    RotaryPosEmbeddingHelperV3,
    RotaryPosEmbeddingMode,
    apply_rotary_pos_emb,
)

from . import Fp8Ops

__all__ = [
    "CTCLoss",
    "Fp8Ops",
    "FusedSDPA",
    "RotaryPosEmbeddingHelperV1",
    "RotaryPosEmbeddingHelperV2",
    "RotaryPosEmbeddingHelperV3",
    "RotaryPosEmbeddingMode",
    "apply_rotary_pos_emb",
]
