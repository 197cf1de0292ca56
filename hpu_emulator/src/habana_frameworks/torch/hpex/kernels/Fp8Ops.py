"""8-bit floats."""

from habana_torch_plugin_emulator.fp8 import cast_from_fp8, cast_to_fp8_v2, fp8_gemm_v2

__all__ = ["cast_from_fp8", "cast_to_fp8_v2", "fp8_gemm_v2"]
