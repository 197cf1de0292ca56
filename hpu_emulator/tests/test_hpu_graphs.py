"""HPU graphs: what a replay computes, where it writes, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable

import habana_frameworks.torch as ht
import pytest
import torch
from habana_frameworks.torch.hpu.graphs import CachedParams, copy_to, input_hash
from habana_torch_plugin_emulator.accounting import count_graphs
from torch import Tensor


@pytest.fixture(autouse=True)
def _lazy_mode(monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")


def captured(function: Callable[[], object]) -> tuple[ht.hpu.HPUGraph, object]:
    graph = ht.hpu.HPUGraph()
    graph.capture_begin()
    result = function()
    graph.capture_end()
    return graph, result


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).to("hpu")


# ---- capture and replay


def test_a_replay_casts_where_the_recording_did_and_nowhere_else():
    """A rotary embedding, say, turns mixed precision off for its own products."""
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).to("hpu")

    def products() -> tuple[Tensor, Tensor]:
        with torch.autocast("hpu", enabled=False):
            exact = x @ x
        return exact, x @ x

    with torch.autocast("hpu", dtype=torch.bfloat16):
        graph, (exact, rounded) = captured(products)
        x.mul_(1.5)
        graph.replay()
        expected = products()
    assert [exact.dtype, rounded.dtype] == [torch.float32, torch.bfloat16]
    assert torch.equal(exact.cpu(), expected[0].cpu())
    assert torch.equal(rounded.cpu(), expected[1].cpu())


def test_replay_reads_the_inputs_anew_and_writes_the_results_where_they_were():
    x = torch.full((4,), 1.0, device="hpu")
    graph, result = captured(lambda: (x + 1) * 2)
    address = result.data_ptr()
    assert result.tolist() == [4.0] * 4
    x.fill_(5.0)
    graph.replay()
    assert result.tolist() == [12.0] * 4
    assert result.data_ptr() == address


def test_views_of_results_follow():
    x = torch.arange(4.0, device="hpu")
    graph, (whole, tail) = captured(lambda: (y := x * 10, y.view(2, 2)[1]))
    x.add_(1)
    graph.replay()
    assert whole.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert tail.tolist() == [30.0, 40.0]


def test_operators_in_place_are_repeated_on_the_same_buffers():
    cache, position = torch.zeros(4, device="hpu"), torch.zeros(1, dtype=torch.long, device="hpu")
    value = torch.ones(1, device="hpu")
    graph, _ = captured(lambda: cache.index_copy_(0, position, value))
    for step in (1, 2):
        position.add_(1)
        value.fill_(float(step * 10))
        graph.replay()
    assert cache.tolist() == [1.0, 10.0, 20.0, 0.0]


def test_python_between_the_operators_is_not_repeated():
    calls = []
    x = torch.ones(2, device="hpu")
    graph, _ = captured(lambda: (calls.append(1), x * 2))
    graph.replay()
    assert calls == [1]


def test_random_numbers_are_drawn_anew():
    x = torch.zeros(64, device="hpu")
    graph, result = captured(lambda: torch.rand_like(x))
    first = result.tolist()
    graph.replay()
    assert result.tolist() != first


def test_a_whole_training_step_can_be_captured():
    """Forward, backward and gradients: what the backward pass reads of the forward is recomputed too."""
    net, plain = network(), network()
    x = torch.randn(5, 4, device="hpu")

    def step(module: torch.nn.Module) -> Tensor:
        loss = module(x).pow(2).mean()
        loss.backward()
        return loss.detach()

    graph, loss = captured(lambda: step(net))
    for _ in range(3):
        x.normal_()
        plain.zero_grad()
        wanted = step(plain)
        graph.replay()
        assert torch.equal(loss, wanted)
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)


def test_intermediate_results_take_no_memory_between_replays():
    x = torch.zeros(1024, 256, device="hpu")
    before = torch.hpu.memory_allocated()
    graph, result = captured(lambda: ((x + 1) * 2 - 3).sum())
    assert torch.hpu.memory_allocated() - before < x.numel()
    graph.replay()
    assert torch.hpu.memory_allocated() - before < x.numel()
    assert result.item() == -x.numel()


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: bool((x > 0).any())],
)
def test_what_waits_for_a_value_cannot_be_captured(wait):
    x = torch.ones(3, device="hpu")
    graph = ht.hpu.HPUGraph()
    graph.capture_begin()
    with pytest.raises(RuntimeError, match="not supported during HPU Graph capturing"):
        wait(x)
    graph.capture_end()


def test_wrong_order_of_calls_is_refused():
    graph = ht.hpu.HPUGraph()
    with pytest.raises(RuntimeError, match="before anything was captured"):
        graph.replay()
    with pytest.raises(RuntimeError, match="without capture_begin"):
        graph.capture_end()
    graph.capture_begin()
    with pytest.raises(RuntimeError, match="captured already"):
        graph.capture_begin()
    graph.capture_end()


def test_eager_mode_has_no_graphs(monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")
    with pytest.raises(RuntimeError, match="lazy mode"):
        ht.hpu.HPUGraph().capture_begin()


def test_the_context_manager_captures_and_a_stream_may_surround_it():
    x = torch.ones(2, device="hpu")
    graph = ht.hpu.HPUGraph()
    with ht.hpu.stream(ht.hpu.Stream()), ht.hpu.graph(graph):
        result = x * 3
    x.fill_(2.0)
    graph.replay()
    ht.core.hpu.default_stream().synchronize()
    assert result.tolist() == [6.0, 6.0]


# ---- wrapped modules


@pytest.mark.parametrize("disable_tensor_cache", [False, True])
def test_a_wrapped_module_computes_what_the_plain_one_does(disable_tensor_cache):
    plain = network()
    wrapped = ht.hpu.wrap_in_hpu_graph(copy.deepcopy(plain), disable_tensor_cache=disable_tensor_cache)
    with torch.no_grad():
        for rows in (3, 5, 3, 5, 3):
            x = torch.randn(rows, 4, device="hpu")
            assert torch.equal(wrapped(x), plain(x))


def test_with_the_tensor_cache_the_output_is_overwritten_and_without_it_is_not():
    x, y = torch.zeros(3, 4, device="hpu"), torch.ones(3, 4, device="hpu")
    with torch.no_grad():
        kept = ht.hpu.wrap_in_hpu_graph(network())
        kept(x)
        first, second = kept(x), kept(y)
        assert first is second
        assert torch.equal(x, y)  # the first call's input became the buffer
        x = torch.zeros(3, 4, device="hpu")
        fresh = ht.hpu.wrap_in_hpu_graph(network(), disable_tensor_cache=True)
        fresh(x)
        first, second = fresh(x), fresh(y)
        assert not torch.equal(first, second)


def test_inputs_with_other_strides_are_taken_right():
    plain = network()
    wrapped = ht.hpu.wrap_in_hpu_graph(copy.deepcopy(plain), disable_tensor_cache=True)
    with torch.no_grad():
        wrapped(torch.randn(4, 4, device="hpu"))
        x = torch.randn(4, 8, device="hpu").t()[2:6].t()  # a slice: other strides, another offset
        torch.testing.assert_close(wrapped(x), plain(x))


def test_python_values_choose_the_graph_and_keywords_may_come_in_any_order():
    class Scale(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
            return {"sum": x + y * factor}

    wrapped = ht.hpu.wrap_in_hpu_graph(Scale())
    x, y = torch.ones(2, device="hpu"), torch.full((2,), 2.0, device="hpu")
    assert wrapped(x=x, y=y, factor=3.0)["sum"].tolist() == [7.0, 7.0]
    assert wrapped(x=x, y=y, factor=4.0)["sum"].tolist() == [9.0, 9.0]
    assert wrapped(y=y.clone(), factor=3.0, x=x.clone())["sum"].tolist() == [7.0, 7.0]


def test_calls_past_the_wrapping_and_past_the_limit_run_the_plain_forward():
    calls = []

    class Noting(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x + 1

    wrapped = ht.hpu.wrap_in_hpu_graph(Noting(), max_graphs=1)
    for rows in (2, 2, 3, 3):
        assert wrapped(torch.zeros(rows, device="hpu")).tolist() == [1.0] * rows
    wrapped(torch.zeros(2, device="hpu"), bypass_hpu_graphs=True)
    assert calls == [2, 3, 3, 2]
    wrapped.clear_cache()
    wrapped(torch.zeros(2, device="hpu"))
    assert calls[-1] == 2
    assert len(calls) == 5


def test_replays_compile_nothing():
    wrapped = ht.hpu.wrap_in_hpu_graph(network())
    x = torch.randn(3, 4, device="hpu")
    with torch.no_grad(), count_graphs() as count:
        wrapped(x)
        captured_at = count.mark()
        for _ in range(5):
            wrapped(x)
        ht.core.mark_step()
    assert len(captured_at) == 1
    assert count.since(captured_at) == []


# ---- training


def test_a_cached_module_trains_like_the_plain_one():
    plain = network()
    cached = copy.deepcopy(plain)
    ht.hpu.ModuleCacher(max_graphs=2)(model=cached, inplace=True)
    modules = plain, cached
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.1) for module in modules]
    for step in range(8):
        x = torch.randn(4 + step % 2, 4, device="hpu")
        losses = []
        for module, optimizer in zip(modules, optimizers, strict=True):
            loss = module(x).pow(2).mean()
            loss.backward()
            if step % 2:  # gradients add up over two steps
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == losses[1]
    for ours, theirs in zip(cached.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_cached_module_gives_gradients_to_its_inputs_and_drops_out_anew():
    torch.manual_seed(0)
    module = torch.nn.Dropout(0.5)
    ht.hpu.ModuleCacher()(model=module, inplace=True)
    x = torch.ones(64, device="hpu", requires_grad=True)
    patterns = set()
    for _ in range(3):
        output = module(x)
        output.sum().backward()
        assert torch.equal(x.grad, output.detach())  # 2 where kept, 0 where dropped, both ways
        patterns.add(tuple(output.tolist()))
        x.grad = None
    assert len(patterns) == 3


def test_an_unused_parameter_needs_the_permission():
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    x = torch.ones(1, 2, device="hpu")
    strict = Unused().to("hpu")
    ht.hpu.ModuleCacher()(model=strict, inplace=True)
    with pytest.raises(RuntimeError, match="allow_unused"):
        strict(x)
    tolerant = Unused().to("hpu")
    ht.hpu.ModuleCacher()(model=tolerant, inplace=True, allow_unused_input=True)
    tolerant(x).sum().backward()
    assert tolerant.used.weight.grad is not None
    assert tolerant.unused.weight.grad is None


def test_graphed_callables_take_one_module_or_several():
    plain = network()
    graphed = ht.hpu.make_graphed_callables(copy.deepcopy(plain), (torch.randn(3, 4, device="hpu"),))
    x = torch.randn(3, 4, device="hpu")
    assert torch.equal(graphed(x), plain(x))


# ---- the helpers


def test_inputs_hash_by_shape_dtype_structure_and_value():
    x = torch.zeros(2, 3, device="hpu")
    same = input_hash([x, 1, None])
    assert input_hash([torch.ones(2, 3, device="hpu"), 1, None]) == same
    others = [
        [x, 2, None],
        [x[:1], 1, None],
        [x.bfloat16(), 1, None],
        (x, 1, None),
        [x, 1, False],
        [x, [1], None],
    ]
    assert same not in {input_hash(other) for other in others}
    assert input_hash(x.t().contiguous().t()) == input_hash(x)
    assert input_hash(x.t().contiguous().t(), with_views=True) != input_hash(x, with_views=True)


def test_copy_to_fills_the_buffers_of_a_cached_graph():
    x = torch.zeros(2, device="hpu")
    graph, result = captured(lambda: x + 1)
    cached = CachedParams([x, True], result, graph)
    copy_to(cached.graph_inputs, [torch.full((2,), 6.0, device="hpu"), True])
    cached.graph.replay()
    assert cached.graph_outputs.tolist() == [7.0, 7.0]
    with pytest.raises(ValueError, match="places"):
        copy_to([x], [x, x])
