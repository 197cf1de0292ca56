"""What the plugin reads from and writes to the environment of a process that MPI started."""

from __future__ import annotations

import os

FROM_MPI = {
    "OMPI_COMM_WORLD_RANK": "RANK",
    "OMPI_COMM_WORLD_SIZE": "WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK": "LOCAL_RANK",
}


def adopt_mpi_environment() -> None:
    """Gives a process under mpirun the variables of torch.distributed, where they are not set.

    accelerate looks for LOCAL_RANK before it imports anything of hccl; without it, training would run on the CPU.
    """
    if "OMPI_COMM_WORLD_RANK" not in os.environ:
        return
    for source, target in FROM_MPI.items():
        if source in os.environ:
            os.environ.setdefault(target, os.environ[source])
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "12345")
