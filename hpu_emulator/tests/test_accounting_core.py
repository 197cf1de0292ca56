"""Counting graphs, in C++: what makes a graph new, what ends one, and that counting does not disturb."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from conftest import RunPython
from habana_torch_plugin_emulator import _C


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    _C.accounting_reset()
    _C.accounting_start(lazy=True)
    yield
    _C.accounting_stop()
    _C.accounting_reset()
    _C.accounting_set_locator(None)


def mark() -> None:
    _C.accounting_mark("mark_step")


def distinct() -> int:
    return int(_C.accounting_counts()["distinct"])


def step(rows: int) -> None:
    x = torch.ones(rows, 4, device="hpu")
    (x * 2).sum(0)
    mark()


def test_the_same_shapes_are_one_graph_run_often() -> None:
    for _ in range(5):
        step(3)
    (graph,) = _C.accounting_graphs()
    assert graph["runs"] == 5
    assert graph["ops"] == 3  # fill, multiply, sum
    assert _C.accounting_counts() == {"flushes": 5, "distinct": 1, "operators": 15}


def test_each_new_shape_is_a_graph() -> None:
    for rows in (3, 4, 3, 5):
        step(rows)
    assert [graph["runs"] for graph in _C.accounting_graphs()] == [2, 1, 1]
    assert [graph["first_flush"] for graph in _C.accounting_graphs()] == [1, 2, 4]


def test_the_cause_is_the_first_operator_that_differs() -> None:
    def run(width: int) -> None:
        x = torch.zeros(2, 6, device="hpu")
        y = x + 1
        (y[:, :width] * 3).exp()
        mark()

    seen = []
    run(6)
    _C.accounting_set_locator(lambda op: seen.append(op) or f"line of {op}")
    run(6)
    run(4)
    graph = _C.accounting_graphs()[1]
    assert graph["cause_op"] == "mul.Tensor"
    assert graph["cause_shapes"][0] == [2, 4]
    assert graph["cause_dtypes"][0] == "Float"
    assert graph["location"] == "line of mul.Tensor"
    assert graph["flush_reason"] == "mark_step"
    assert seen == ["mul.Tensor"]  # never called while nothing is new


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t() + 1,  # strides
        lambda x: x[1:] + 1,  # offset
        lambda x: x.bfloat16() + 1,  # dtype
        lambda x: x.sum(1),  # integer argument
        lambda x: x - 1,  # operator
    ],
    ids=["strides", "offset", "dtype", "integer", "operator"],
)
def test_what_is_part_of_a_graph(change) -> None:  # type: ignore[no-untyped-def]
    x = torch.ones(4, 4, device="hpu")
    mark()
    before = distinct()
    for base in (lambda x: x + 1, lambda x: x.sum(0)):
        base(x)
        mark()
    change(x)
    mark()
    assert distinct() == before + 3


def test_floating_point_constants_are_not_part_of_a_graph() -> None:
    x = torch.ones(4, device="hpu")
    mark()
    before = distinct()
    for factor in (0.5, 0.25):
        x.mul_(factor)
        mark()
    assert distinct() == before + 1


@pytest.mark.parametrize(
    ("flush", "reason"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: x.cpu(), "copy to host"),
        (lambda x: x.tolist(), "copy to host"),
        (lambda x: x.nonzero(), "data-dependent operator"),
        (lambda x: x[x > 0], "data-dependent operator"),
        (lambda x: torch.equal(x, x), "data-dependent operator"),
        (lambda x: mark(), "mark_step"),
    ],
    ids=["item", "cpu", "tolist", "nonzero", "boolean index", "equal", "mark_step"],
)
def test_what_ends_a_graph(flush, reason: str) -> None:  # type: ignore[no-untyped-def]
    x = torch.ones(4, device="hpu") + 1
    assert distinct() == 0
    flush(x)
    assert _C.accounting_graphs()[0]["flush_reason"] == reason


def test_nothing_is_no_graph() -> None:
    mark()
    mark()
    torch.ones(3).to("hpu")  # bringing data in computes nothing
    mark()
    assert _C.accounting_counts() == {"flushes": 0, "distinct": 0, "operators": 0}


def test_a_collective_ends_a_graph(run_python: RunPython) -> None:
    done = run_python("""
        import tempfile
        import torch
        import torch.distributed as dist
        from habana_torch_plugin_emulator import _C
        store = tempfile.NamedTemporaryFile()
        dist.init_process_group("hccl", init_method=f"file://{store.name}", rank=0, world_size=1)
        _C.accounting_start(lazy=True)
        x = torch.ones(3, device="hpu") + 1
        dist.all_reduce(x)
        print(_C.accounting_graphs()[0]["flush_reason"])
        dist.destroy_process_group()
    """)
    assert done.stdout == "collective\n"


def test_in_eager_mode_each_operator_is_a_graph() -> None:
    _C.accounting_stop()
    _C.accounting_reset()
    _C.accounting_start(lazy=False)
    x = torch.ones(4, device="hpu")
    for _ in range(3):
        x = x + 1
    (x[1:] * 2).sum()
    names = [graph["cause_op"].split(".")[0] for graph in _C.accounting_graphs()]
    assert names == ["fill_", "add", "mul", "sum"]
    assert [graph["runs"] for graph in _C.accounting_graphs()] == [1, 3, 1, 1]


def test_the_default_mode_is_the_environments(run_python: RunPython) -> None:
    code = """
        import torch
        from habana_torch_plugin_emulator import _C
        _C.accounting_start()
        torch.ones(3, device="hpu") + 1
        print(_C.accounting_counts()["distinct"])
    """
    assert run_python(code, PT_HPU_LAZY_MODE="0").stdout == "2\n"
    assert run_python(code, PT_HPU_LAZY_MODE="1").stdout == "0\n"
    assert run_python(code, PT_HPU_LAZY_MODE=None).stdout == "0\n"


def test_backward_and_optimizer_are_counted() -> None:
    layer = torch.nn.Linear(4, 4, device="hpu")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    mark()
    before = distinct()
    for _ in range(3):
        layer(torch.ones(2, 4, device="hpu")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        mark()
    assert distinct() == before + 1
    assert _C.accounting_graphs()[-1]["runs"] == 3


def test_a_failing_locator_is_reported_and_does_not_fail_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caught = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: caught.append(found.exc_value))
    _C.accounting_set_locator(lambda op: 1 / 0)
    assert (torch.ones(2, device="hpu") + 1).sum().item() == 4
    assert isinstance(caught[0], ZeroDivisionError)


def test_threads_may_compute_while_the_locator_runs() -> None:
    _C.accounting_set_locator(lambda op: str(torch.ones(2).sum()))
    errors = []

    def work(offset: int) -> None:
        try:
            for size in range(1, 60):
                (torch.ones(size + 100 * offset, device="hpu") * 2).sum().item()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not errors
    assert _C.accounting_counts()["operators"] == 3 * 59 * 3
