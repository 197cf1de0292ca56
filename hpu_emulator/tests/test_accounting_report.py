"""Counting graphs from Python: what is counted, where a new graph is said to come from, how the report reads."""

from __future__ import annotations

import re

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpu.metrics import metric_localcontext
from habana_torch_plugin_emulator.accounting import count_graphs, format_report, paused


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(2)])

    def forward(self, x: torch.Tensor, only: int | None = None) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            if only is None or index == only:
                x = layer(self.norm(x))
        return x


class State:
    def __init__(self) -> None:
        self.global_step = 7


class TrainerLike:
    """What the locator looks for in a trainer: a state with a global step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.state = State()
        self.model = model

    def training_step(self, x: torch.Tensor) -> None:
        self.model(x).sum().backward()
        htcore.mark_step()


@pytest.fixture(autouse=True)
def _lazy_mode(monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")


def run(block: Block, rows: int, **keywords: int) -> None:
    x = torch.empty(rows, 4, device="hpu")
    htcore.mark_step()
    block(x, **keywords)
    htcore.mark_step()


def test_equal_steps_are_one_graph_and_another_shape_is_another():
    block = Block().to("hpu")
    with count_graphs() as count:
        run(block, 2)
        one = count.distinct
        run(block, 2)
        assert count.distinct == one
        run(block, 3)
        assert count.distinct > one
    assert count.flushes == sum(graph["runs"] for graph in count.graphs())


def test_since_tells_what_was_new_after_the_warm_up():
    block = Block().to("hpu")
    with count_graphs() as count:
        run(block, 2)
        warm = count.mark()
        run(block, 2)
        assert count.since(warm) == []
        run(block, 3)
        new = count.since(warm)
    assert new
    assert new[-1]["location"].startswith("norm (LayerNorm of Block), test_accounting_report.py:")
    assert "norm (LayerNorm of Block)" in count.report()


def test_counts_stay_after_the_block_and_do_not_see_what_comes_later():
    block = Block().to("hpu")
    with count_graphs() as count:
        run(block, 2)
    before = count.distinct, count.flushes
    run(block, 5)
    assert (count.distinct, count.flushes) == before


def test_counts_may_be_nested_and_each_sees_its_own_runs():
    block = Block().to("hpu")
    with count_graphs() as outer:
        run(block, 2)
        with count_graphs() as inner:
            run(block, 2)
            run(block, 3)
        run(block, 2)
    runs_of = {graph["id"]: graph["runs"] for graph in inner.graphs()}
    for graph in outer.graphs():
        assert graph["runs"] >= runs_of.get(graph["id"], 0)
    assert inner.distinct == outer.distinct
    assert outer.flushes > inner.flushes


def test_what_runs_while_paused_is_not_counted():
    block = Block().to("hpu")
    with count_graphs() as count:
        run(block, 2)
        flushes = count.flushes
        with paused("a test"):
            run(block, 9)
        assert count.flushes == flushes
        run(block, 2)
    assert count.flushes > flushes


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: (x + 1).cpu(),
        lambda x: (x + 1).nonzero(),
        lambda x: bool((x > 0).all()),
    ],
)
def test_waiting_for_a_value_ends_a_graph(wait):
    x = torch.ones(3, device="hpu")
    with count_graphs() as count:
        wait(x)
        assert count.flushes == 1


def test_the_layer_the_backward_node_the_optimizer_and_the_line_are_named():
    block = Block().to("hpu")
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x, gradient = torch.empty(2, 4, device="hpu"), torch.ones(2, 4, device="hpu")
    with count_graphs() as count:
        output = block(x, only=1)
        htcore.mark_step()
        output.backward(gradient)
        htcore.mark_step()
        optimizer.step()
        htcore.mark_step()
        x + 1
        htcore.mark_step()
    forward, backward, step, line = (graph["location"] for graph in count.graphs())
    assert forward.startswith("norm (LayerNorm of Block)")
    assert re.match(r"backward of \w+, test_accounting_report.py:\d+", backward)
    assert step.startswith("SGD.")
    assert re.fullmatch(r"test_accounting_report.py:\d+", line)


def test_a_module_in_a_list_is_named_by_its_dotted_path():
    block = Block().to("hpu")
    with count_graphs() as count:
        run(block, 2, only=0)
        warm = count.mark()
        block.layers[1].weight.data = (
            block.layers[1].weight.data.bfloat16().float().t()
        )  # other strides, a new graph
        htcore.mark_step()
        run(block, 2, only=1)
    assert any(graph["location"].startswith("layers.1 (Linear of Block)") for graph in count.since(warm))


def test_recomputation_in_the_backward_pass_names_the_module_too():
    block = Block().to("hpu")
    x = torch.empty(2, 4, device="hpu", requires_grad=True)
    gradient = torch.ones(2, 4, device="hpu")
    output = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    with count_graphs() as count:
        output.backward(gradient)
        htcore.mark_step()
    assert any("recomputing norm (LayerNorm of Block)" in graph["location"] for graph in count.graphs())


def test_the_trainers_step_is_told_in_forward_and_backward():
    trainer = TrainerLike(Block().to("hpu"))
    x = torch.empty(2, 4, device="hpu")
    with count_graphs() as count:
        trainer.training_step(x)
    assert [graph["location"].endswith(", step 7") for graph in count.graphs()] == [True]


def test_the_report_lists_cause_shapes_and_place_and_stops_at_a_length():
    block = Block().to("hpu")
    with count_graphs() as count:
        for rows in range(1, 6):
            run(block, rows)
    report = count.report()
    assert f"{count.distinct} distinct graphs in {count.flushes} flushes" in report
    assert "native_layer_norm(float[3, 4]" in report
    short = format_report(count.graphs(), count.flushes, rows=2)
    assert f"and {count.distinct - 2} more" in short


def test_a_known_graph_ended_sooner_says_so():
    x = torch.ones(3, device="hpu")
    with count_graphs() as count:
        (x + 1) * 2
        htcore.mark_step()
        x + 1
        htcore.mark_step()
    assert "the beginning of a known graph, ended sooner by mark_step" in count.report()


def test_the_vendors_metric_counts_the_same():
    block = Block().to("hpu")
    with metric_localcontext("graph_compilation") as metric, count_graphs() as count:
        run(block, 2)
        run(block, 3)
    assert dict(metric.stats())["TotalNumber"] == count.distinct
    with (
        pytest.raises(NotImplementedError, match="graph_compilation"),
        metric_localcontext("memory_defragmentation"),
    ):
        pass


def test_eager_mode_counts_operators(monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")
    x = torch.ones(3, device="hpu")
    with count_graphs() as count:
        for _ in range(3):
            y = x * 2
            y + 1
    assert count.distinct == 2
    assert {graph["cause_op"] for graph in count.graphs()} == {"mul.Tensor", "add.Tensor"}
