"""Importing this makes the `hccl` backend of torch.distributed available."""

import os

from habana_torch_plugin_emulator import collectives
from habana_torch_plugin_emulator.environment import adopt_mpi_environment

adopt_mpi_environment()
collectives.register()


def initialize_distributed_hpu() -> tuple[int, int, int]:
    """(world size, rank, local rank) of this process, from the launcher's variables; (1, 0, 0) without a launcher."""
    adopt_mpi_environment()
    return tuple(
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )  # type: ignore[return-value]


__all__ = ["initialize_distributed_hpu"]
