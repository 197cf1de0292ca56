"""Two processes run every case below on HPU tensors; test_collectives.py starts them and reads what each found.

Usage: python collective_cases.py RANK SIZE STORE_FILE RESULT_FILE
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

CASES: dict[str, Callable[[int, int], None]] = {}


def case(function: Callable[[int, int], None]) -> Callable[[int, int], None]:
    CASES[function.__name__] = function
    return function


def hpu(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device="hpu")


def check(tensor: torch.Tensor, *values: float) -> None:
    assert tensor.device.type == "hpu", tensor.device
    assert tensor.flatten().tolist() == list(values), tensor


@case
def all_reduce(rank: int, size: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8):
        tensor = hpu(1, 2 + rank, dtype=dtype)
        dist.all_reduce(tensor)
        check(tensor, 2, 5)
    for op, expected in (
        (dist.ReduceOp.MAX, 2), (dist.ReduceOp.MIN, 1), (dist.ReduceOp.PRODUCT, 2), (dist.ReduceOp.AVG, 1.5)
    ):  # fmt: skip
        tensor = hpu(1 + rank)
        dist.all_reduce(tensor, op=op)
        check(tensor, expected)


@case
def all_reduce_with_a_premultiplied_sum(rank: int, size: int) -> None:
    tensor = hpu(1 + rank)
    dist.all_reduce(tensor, op=dist._make_nccl_premul_sum(0.5))
    check(tensor, 1.5)


@case
def all_reduce_async_gives_futures_of_hpu_tensors(rank: int, size: int) -> None:
    tensor = hpu(1 + rank)
    work = dist.all_reduce(tensor, async_op=True)
    future = work.get_future().then(lambda done: done.value()[0] * 2)
    work.wait()
    assert work.is_completed()
    check(tensor, 3)
    check(future.wait(), 6)
    check(work.result()[0], 3)


@case
def all_reduce_coalesced(rank: int, size: int) -> None:
    tensors = [hpu(1.0), hpu(rank, 2.0)]
    dist.all_reduce_coalesced(tensors)
    check(tensors[0], 2)
    check(tensors[1], 1, 4)


@case
def broadcast(rank: int, size: int) -> None:
    tensor = hpu(rank, 7)
    dist.broadcast(tensor, src=1)
    check(tensor, 1, 7)


@case
def reduce(rank: int, size: int) -> None:
    tensor = hpu(1 + rank)
    dist.reduce(tensor, dst=1, op=dist.ReduceOp.AVG)
    if rank == 1:
        check(tensor, 1.5)


@case
def all_gather(rank: int, size: int) -> None:
    out = [torch.zeros(2, device="hpu") for _ in range(size)]
    dist.all_gather(out, hpu(rank, 5))
    check(torch.stack(out), 0, 5, 1, 5)


@case
def all_gather_of_uneven_sizes(rank: int, size: int) -> None:
    out = [torch.zeros(1, device="hpu"), torch.zeros(2, device="hpu")]
    dist.all_gather(out, torch.full((rank + 1,), float(rank), device="hpu"))
    check(torch.cat(out), 0, 1, 1)


@case
def all_gather_into_tensor_concatenated_and_stacked(rank: int, size: int) -> None:
    for shape in ((4, 2), (2, 2, 2)):
        out = torch.zeros(shape, device="hpu")
        dist.all_gather_into_tensor(out, torch.full((2, 2), float(rank), device="hpu"))
        check(out, 0, 0, 0, 0, 1, 1, 1, 1)


@case
def gather(rank: int, size: int) -> None:
    out = [torch.zeros(1, device="hpu") for _ in range(size)] if rank == 0 else None
    dist.gather(hpu(rank + 1), out, dst=0)
    if out is not None:
        check(torch.cat(out), 1, 2)


@case
def scatter(rank: int, size: int) -> None:
    out = torch.zeros(1, device="hpu")
    dist.scatter(out, [hpu(4), hpu(5)] if rank == 0 else None, src=0)
    check(out, 4 + rank)


@case
def reduce_scatter(rank: int, size: int) -> None:
    out = torch.zeros(1, device="hpu")
    dist.reduce_scatter(out, [hpu(1 + rank), hpu(10 + rank)])
    check(out, 3 if rank == 0 else 21)


@case
def reduce_scatter_tensor(rank: int, size: int) -> None:
    for op, expected in ((dist.ReduceOp.SUM, (3, 5, 9, 11)), (dist.ReduceOp.AVG, (1.5, 2.5, 4.5, 5.5))):
        out = torch.zeros(2, device="hpu")
        given = hpu(1, 2, 4, 5) + rank
        dist.reduce_scatter_tensor(out, given, op=op)
        check(out, *expected[2 * rank : 2 * rank + 2])
        check(given, 1 + rank, 2 + rank, 4 + rank, 5 + rank)


@case
def all_to_all_single(rank: int, size: int) -> None:
    out = torch.zeros(2, device="hpu")
    dist.all_to_all_single(out, hpu(10 * rank, 10 * rank + 1))
    check(out, rank, 10 + rank)


@case
def all_to_all_of_lists(rank: int, size: int) -> None:
    out = [torch.zeros(1, 2, device="hpu") for _ in range(size)]
    dist.all_to_all(out, [torch.full((1, 2), 10.0 * rank + to, device="hpu") for to in range(size)])
    check(torch.cat(out), rank, rank, 10 + rank, 10 + rank)


@case
def send_and_receive(rank: int, size: int) -> None:
    if rank == 0:
        dist.send(hpu(3, 4), dst=1)
        dist.isend(hpu(8), dst=1).wait()
    else:
        tensor = torch.zeros(2, device="hpu")
        assert dist.recv(tensor) == 0
        check(tensor, 3, 4)
        tensor = torch.zeros(1, device="hpu")
        dist.irecv(tensor, src=0).wait()
        check(tensor, 8)


@case
def batched_send_and_receive(rank: int, size: int) -> None:
    tensor = torch.zeros(1, device="hpu")
    operations = [dist.P2POp(dist.isend, hpu(rank), 1 - rank), dist.P2POp(dist.irecv, tensor, 1 - rank)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    check(tensor, 1 - rank)


@case
def barrier_and_objects(rank: int, size: int) -> None:
    dist.barrier()
    dist.barrier(device_ids=[rank])
    gathered: list[object] = [None] * size
    dist.all_gather_object(gathered, {"rank": rank})
    assert gathered == [{"rank": 0}, {"rank": 1}]
    objects: list[object] = ["from 0"] if rank == 0 else [None]
    dist.broadcast_object_list(objects, src=0)
    assert objects == ["from 0"]


@case
def subgroups(rank: int, size: int) -> None:
    groups = [dist.new_group([index]) for index in range(size)]
    tensor = hpu(5 + rank)
    dist.all_reduce(tensor, group=groups[rank])
    check(tensor, 5 + rank)
    assert dist.get_backend(groups[rank]) == "hccl"


@case
def functional_collectives_and_device_mesh(rank: int, size: int) -> None:
    import torch.distributed._functional_collectives as functional
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("hpu", (size,))
    check(functional.all_reduce(hpu(1 + rank), "sum", mesh).wait(), 3)
    check(functional.all_gather_tensor(hpu(rank), 0, mesh).wait(), 0, 1)
    check(functional.reduce_scatter_tensor(hpu(1, 2), "avg", 0, mesh).wait(), 1 + rank)


@case
def a_cpu_tensor_is_refused(rank: int, size: int) -> None:
    with pytest.raises(RuntimeError, match="device type cpu"):
        dist.all_reduce(torch.ones(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def batches(steps: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(5)
    return [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(steps)]


def trained_alone(net: nn.Module) -> list[torch.Tensor]:
    """The weights after the steps on the whole batch, on the CPU, by one process."""
    net = copy.deepcopy(net).cpu()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    for x, y in batches():
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in net.parameters()]


def train(model: nn.Module, rank: int) -> None:
    """The same steps, this rank on its half of each batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for x, y in batches():
        part = slice(2 * rank, 2 * rank + 2)
        nn.functional.mse_loss(model(x[part].to("hpu")), y[part].to("hpu")).backward()
        optimizer.step()
        optimizer.zero_grad()


def new_net() -> Net:
    torch.manual_seed(1)
    return Net()


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.detach().cpu(), b, rtol=1e-4, atol=1e-5)


@case
def ddp_equals_one_process(rank: int, size: int) -> None:
    for view in (False, True):
        net = new_net()
        model = nn.parallel.DistributedDataParallel(
            copy.deepcopy(net).to(f"hpu:{rank}"), device_ids=[rank], gradient_as_bucket_view=view
        )
        train(model, rank)
        close(list(model.parameters()), trained_alone(net))


@case
def fsdp1_equals_one_process(rank: int, size: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    net = new_net()
    model = FSDP(copy.deepcopy(net).to("hpu"), device_id=torch.device("hpu", rank), use_orig_params=True)
    train(model, rank)
    with FSDP.summon_full_params(model):
        close([parameter.clone() for parameter in model.parameters()], trained_alone(net))


@case
def fsdp2_equals_one_process(rank: int, size: int) -> None:
    from torch.distributed.fsdp import fully_shard

    net = new_net()
    model = copy.deepcopy(net).to("hpu")
    for layer in (model.layers[0], model.layers[3]):
        fully_shard(layer)
    fully_shard(model)
    train(model, rank)
    close([parameter.full_tensor() for parameter in model.parameters()], trained_alone(net))  # type: ignore[attr-defined]


@case
def accelerate_gathers_and_reduces(rank: int, size: int) -> None:
    from accelerate import PartialState
    from accelerate.utils import gather, reduce

    state = PartialState()
    assert state.device == torch.device("hpu", rank), state.device
    check(gather(torch.full((3, 4), float(rank), device="hpu")), *[0.0] * 12, *[1.0] * 12)
    check(reduce(hpu(2 * rank), "mean"), 1)


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    torch.hpu.set_device(rank)
    dist.init_process_group(
        "hccl", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found = {}
    for name, function in CASES.items():
        try:
            function(rank, size)
            found[name] = "ok"
        except Exception:
            found[name] = traceback.format_exc()
            break  # the other process may be stuck in the collective that this one left
    with open(sys.argv[4], "w") as file:
        json.dump(found, file)
    if all(text == "ok" for text in found.values()):
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
