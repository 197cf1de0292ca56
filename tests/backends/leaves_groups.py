"""Joins a process group, trains a step in it and leaves it, again and again: `leaves_groups.py FOLDER RANK ROUNDS`."""

import gc
import os
import sys

import torch
import torch.distributed as dist

from backends.process_group import leave_process_group

folder, rank, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
for i in range(rounds):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{i}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    gathered = [torch.zeros(3) for _ in range(2)]
    dist.all_gather(gathered, torch.full((3,), float(rank)))
    assert [tensor[0].item() for tensor in gathered] == [0.0, 1.0]
    leave_process_group()
    assert not dist.is_initialized()
    del model, gathered
    gc.collect()
os.write(1, b"left\n")
