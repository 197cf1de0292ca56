"""`import habana_frameworks.torch`: the hpu device, its hccl backend, and the variables that MPI's processes lack."""

from habana_torch_plugin_emulator import announce
from habana_torch_plugin_emulator.environment import adopt_mpi_environment

adopt_mpi_environment()
announce()

from . import core, distributed, hpex, hpu, utils  # noqa: E402
from .distributed import hccl  # noqa: E402
from .hpu import sdp_kernel  # noqa: E402

__all__ = ["core", "distributed", "hccl", "hpex", "hpu", "sdp_kernel", "utils"]
