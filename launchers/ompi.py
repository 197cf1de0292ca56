"""What `mpirun` calls a process's place, in the words that torch.distributed reads.

Open MPI sets OMPI_COMM_WORLD_*, and MPICH's and Intel's mpirun PMI_* and MPI_LOCAL*. PyTorch knows neither: without
RANK and WORLD_SIZE every process takes itself for the only one, and N of them train the same model beside each other.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import MutableMapping

from launchers.errors import LaunchError
from launchers.hosts import DEFAULT_PORT

#: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE as each mpirun calls them.
PLACES = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
#: Differs between two jobs on one machine, and is the same in every process of one.
JOB_NAMES = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_ID")


def set_rank_variables(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE where mpirun started this process; whether it did.

    Must be called before anything makes a process group, and before the Gaudi library loads. What is set already stays.
    MASTER_ADDR and MASTER_PORT are filled in where all processes are on this machine.

    Raises:
        LaunchError: the processes are on several machines and MASTER_ADDR is not set, or mpirun told too little.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return False
    place = next((names for names in PLACES if names[0] in environ and names[1] in environ), None)
    if place is None or environ[place[1]] == "1":
        return False
    rank, world_size, local_rank, local_world_size = place
    if local_rank not in environ or local_world_size not in environ:
        raise LaunchError(
            f"mpirun: {world_size}={environ[world_size]} is set and {local_rank} is not, so which device is whose is "
            "unknown; set RANK, WORLD_SIZE and LOCAL_RANK yourself, or use Open MPI's mpirun"
        )
    if "MASTER_ADDR" not in environ:
        if environ[local_world_size] != environ[world_size]:
            raise LaunchError(
                "mpirun: the processes are on several machines; give them the first one's address: "
                "mpirun -x MASTER_ADDR=host -x MASTER_PORT=29500 …, or let rlhf-hw launch --launcher mpirun do it"
            )
        environ["MASTER_ADDR"] = "127.0.0.1"
    if "MASTER_PORT" not in environ:
        job = next((environ[name] for name in JOB_NAMES if name in environ), "")
        environ["MASTER_PORT"] = str(DEFAULT_PORT + zlib.crc32(job.encode()) % 1000)
    environ["RANK"], environ["WORLD_SIZE"] = environ[rank], environ[world_size]
    environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"] = environ[local_rank], environ[local_world_size]
    return True
