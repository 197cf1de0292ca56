"""How a process leaves the others."""

from __future__ import annotations

import gc

import torch.distributed as dist


def leave_process_group() -> None:
    """Destroy the process group, if there is one; call it when the work is done, on every rank.

    gloo's threads take Python's lock to drop the tensors of the last collective, and a group waits for its
    threads when it dies. Python's own handle on a group lets go of the lock for that; DistributedDataParallel's
    reducer, another owner, does not, and a process in which the reducer is the last owner may wait for ever
    (seen with torch 2.13 in two runs out of eight). A group left to the interpreter's end may abort it
    instead (pytorch/pytorch issues 56297 and 190489). So the reducers let go first.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.nn.parallel import DistributedDataParallel

    for wrapper in [found for found in gc.get_objects() if type(found) is DistributedDataParallel]:
        wrapper.reducer = wrapper.logger = wrapper.process_group = None
    dist.destroy_process_group()
