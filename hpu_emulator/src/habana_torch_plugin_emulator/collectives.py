"""The collective backend `hccl`, done by gloo on the memory of the emulated devices."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

from habana_torch_plugin_emulator import _C


def create_hccl(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Backend:
    """The backend of one process group, as torch.distributed asks for it."""
    if not dist.is_gloo_available():
        raise RuntimeError("the emulated hccl needs a torch built with gloo")
    gloo = dist.ProcessGroupGloo(dist.PrefixStore("hccl/", store), rank, size, timeout)
    backend: dist.Backend = _C.create_hccl(gloo, int(timeout.total_seconds() * 1000))
    return backend


def register() -> None:
    """Makes init_process_group("hccl") work, and hccl the default of HPU tensors. On hardware importing
    habana_frameworks.torch.distributed.hccl does so; here it is done when torch is imported."""
    if dist.is_available() and "hccl" not in dist.Backend.backend_list:
        dist.Backend.register_backend("hccl", create_hccl, devices=["hpu"])
