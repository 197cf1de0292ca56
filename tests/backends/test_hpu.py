"""What a Gaudi is asked that needs none to be answered: runtime, mode, precision, shapes."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from backends import BackendError, resolve
from backends.hpu import HPUBackend, HPUSettings
from backends.hpu_generation import HPUGeneration
from backends.hpu_graphs import HPUGraphSettings
from backends.shapes import StaticBuckets, WithinContext, choose_buckets, padding_share, round_up


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes just the named packages look installed, of those that the backend asks about."""
    asked = ("habana_frameworks", "habana_torch_plugin_emulator", "optimum", "optimum.habana")

    def only(*names: str) -> None:
        def found(name: str) -> Any:
            if name in asked:
                return object() if name in names else None
            return find_spec(name)

        monkeypatch.setattr("backends.hpu.find_spec", found)

    monkeypatch.delenv("PT_HPU_LAZY_MODE", raising=False)
    return only


@pytest.fixture
def optimum(installed: Any) -> None:
    installed("optimum", "optimum.habana")


@pytest.mark.parametrize("device", ["hpu", "habana"])
def test_without_the_gaudi_software_the_line_says_what_to_install(installed: Any, device: str) -> None:
    installed()
    with pytest.raises(
        BackendError, match=r"--device hpu: .*habana_frameworks.*container image.*hpu_emulator"
    ):
        resolve(device)


def test_auto_passes_over_an_emulated_gaudi(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("habana_frameworks", "habana_torch_plugin_emulator")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto").name == "cpu"


# --- runtime and mode ------------------------------------------------------------------------------------------


def test_the_runtime_is_the_one_that_is_installed(installed: Any) -> None:
    installed()
    assert HPUBackend().runtime.value == "native"
    installed("optimum", "optimum.habana")
    assert HPUBackend().runtime.value == "optimum"
    assert HPUBackend(HPUSettings(runtime="native")).runtime.value == "native"


def test_the_optimum_runtime_must_be_installed(installed: Any) -> None:
    installed("optimum")
    with pytest.raises(
        BackendError, match=r"--hpu_runtime optimum: .*requirements-hpu.txt.*--hpu_runtime native"
    ):
        HPUBackend(HPUSettings(runtime="optimum")).runtime  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "variable", "mode"),
    [
        ({}, None, "lazy"),
        ({}, "0", "eager"),
        ({}, "1", "lazy"),
        ({"lazy_mode": False}, None, "eager"),
        ({"lazy_mode": True}, "1", "lazy"),
        ({"torch_compile": True}, None, "compile"),
        ({"torch_compile": True, "lazy_mode": False}, "0", "compile"),
    ],
)
def test_the_mode_follows_the_flags_and_the_variable(
    optimum: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], variable: str | None, mode: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("PT_HPU_LAZY_MODE", variable)
    found = HPUBackend(HPUSettings(**settings)).lazy_mode
    assert found.value == mode
    assert found.reason


def test_native_runs_eagerly_unless_told_otherwise(installed: Any) -> None:
    installed()
    assert HPUBackend().lazy_mode.value == "eager"
    assert HPUBackend(HPUSettings(lazy_mode=True)).lazy_mode.value == "lazy"


@pytest.mark.parametrize(
    ("settings", "variable", "message"),
    [
        ({"lazy_mode": True}, "0", r"--use_lazy_mode True: .*PT_HPU_LAZY_MODE=0"),
        ({"lazy_mode": False}, "1", r"--use_lazy_mode False: .*PT_HPU_LAZY_MODE=1"),
        ({"torch_compile": True, "lazy_mode": True}, None, r"--torch_compile: .*--use_lazy_mode False"),
        ({"torch_compile": True}, "1", r"--torch_compile: .*unset PT_HPU_LAZY_MODE"),
    ],
)
def test_contradictions_about_the_mode_are_reported(
    optimum: None,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    variable: str | None,
    message: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("PT_HPU_LAZY_MODE", variable)
    with pytest.raises(BackendError, match=message):
        HPUBackend(HPUSettings(**settings)).lazy_mode  # noqa: B018


def test_native_lazy_takes_the_attention_whose_mask_is_always_there(installed: Any) -> None:
    installed()
    precision = HPUBackend().precision(False, None)
    assert HPUBackend().attention_implementation(precision).value == "sdpa"
    lazy = HPUBackend(HPUSettings(lazy_mode=True))
    assert lazy.attention_implementation(precision).value == "eager"


# --- precision -------------------------------------------------------------------------------------------------


def test_bf16_is_the_default_and_fp16_is_refused() -> None:
    backend = HPUBackend()
    assert backend.precision(None, None).autocast == "bf16"
    assert backend.precision(False, None).autocast == "no"
    with pytest.raises(BackendError, match=r"--fp16: a Gaudi has no fp16.*--bf16"):
        backend.precision(None, True)
    assert "NVIDIA" in backend.refused_training_arguments()["tf32"]


GRAPHS = {"use_hpu_graphs", "use_hpu_graphs_for_inference", "use_hpu_graphs_for_training"}


@pytest.mark.parametrize("settings", [{"lazy_mode": False}, {"torch_compile": True}])
def test_hpu_graphs_are_refused_outside_lazy_mode(optimum: None, settings: dict[str, Any]) -> None:
    refused = HPUBackend(HPUSettings(**settings)).refused_training_arguments()
    for name in GRAPHS:
        assert "lazy mode only" in refused[name]
        assert "--use_lazy_mode True" in refused[name]


@pytest.mark.parametrize("runtime", ["optimum", "native"])
def test_hpu_graphs_run_in_lazy_mode_of_either_runtime(optimum: None, runtime: Any) -> None:
    backend = HPUBackend(HPUSettings(runtime=runtime, lazy_mode=True))
    assert not GRAPHS & set(backend.refused_training_arguments())
    assert (
        backend.own_settings() > GRAPHS
    )  # and are not left to optimum-habana, which would wrap our hooks too
    assert ("reuse_cache" in backend.own_settings()) == (runtime == "optimum")


@pytest.mark.parametrize(
    ("graphs", "idle"),
    [
        ({"most": 2, "disable_tensor_cache": True}, ["max_hpu_graphs", "disable_tensor_cache_hpu_graphs"]),
        ({"most": 2, "disable_tensor_cache": True, "training": True}, ["disable_tensor_cache_hpu_graphs"]),
        ({"most": 2, "disable_tensor_cache": True, "inference": True}, []),
    ],
)
def test_settings_of_graphs_that_are_not_recorded_are_said_to_be_idle(
    optimum: None, graphs: dict[str, Any], idle: list[str]
) -> None:
    lines = HPUBackend(HPUSettings(graphs=HPUGraphSettings(**graphs))).notes()
    assert [line.partition(":")[0] for line in lines if "no effect" in line] == [f"--{name}" for name in idle]


def test_training_by_graphs_does_not_go_with_recomputed_activations(optimum: None) -> None:
    refused = HPUBackend(HPUSettings(gradient_checkpointing=True)).refused_training_arguments()
    assert GRAPHS & set(refused) == {"use_hpu_graphs_for_training"}
    assert "--gradient_checkpointing" in refused["use_hpu_graphs_for_training"]


def test_8_bit_training_needs_intels_transformer_engine(optimum: None) -> None:
    for name in ("fp8", "minimize_memory"):
        assert "transformer engine" in HPUBackend().refused_training_arguments()[name]


@pytest.mark.parametrize(
    ("runtime", "wanted", "ignored"),
    [
        ("optimum", {}, True),
        ("optimum", {"ignore_eos": False}, False),
        ("native", {"ignore_eos": False}, False),
    ],
)
def test_rollouts_run_to_their_full_length_unless_told_otherwise(
    optimum: None, runtime: Any, wanted: dict[str, Any], ignored: bool
) -> None:
    options = HPUBackend(
        HPUSettings(runtime=runtime, generation=HPUGeneration(**wanted))
    ).generation_options()
    assert options.ignore_eos == ignored
    assert options.arguments.get("ignore_eos", ignored) == ignored


# --- shapes ----------------------------------------------------------------------------------------------------


def test_buckets_hold_every_row_and_there_are_few() -> None:
    lengths = [*range(3, 90, 2), 300]
    policy = HPUBackend().shape_policy(lengths)
    assert not policy.may_vary
    assert 1 <= len(policy.buckets) <= 4
    assert all(policy.pad_length(length) >= length for length in lengths)
    assert all(bucket % 8 == 0 for bucket in policy.buckets)
    assert policy.buckets[-1] == 304


def test_a_rollout_has_one_width() -> None:
    shapes = HPUBackend().rollout_shapes([3, 17, 60], 30)
    assert shapes.answer_width == 30
    assert {shapes.prompts.pad_length(n) for n in (3, 17, 60)} == {64}
    assert {shapes.sequences.pad_length(n) for n in (4, 60, 94)} == {96}


def test_a_longer_row_than_any_seen_gets_a_shape_of_its_own() -> None:
    policy = StaticBuckets((8, 32))
    assert [policy.pad_length(n) for n in (1, 8, 9, 32, 33, 65)] == [8, 8, 32, 32, 40, 72]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_the_buckets_chosen_pad_least_of_all_choices(count: int) -> None:
    from itertools import combinations

    lengths = [(7 * i * i) % 61 + 1 for i in range(40)]
    widths = sorted({round_up(length, 8) for length in lengths})

    def padded(buckets: tuple[int, ...]) -> int:
        return sum(StaticBuckets(buckets).pad_length(length) for length in lengths)

    every = [c for n in range(1, count + 1) for c in combinations(widths, n) if c[-1] == widths[-1]]
    assert padded(choose_buckets(lengths, count, 8)) == min(map(padded, every))


def test_the_share_of_padding_is_that_of_the_rows() -> None:
    assert padding_share([5, 8, 3], StaticBuckets((8,))) == pytest.approx(8 / 24)
    with pytest.raises(ValueError, match="no"):
        choose_buckets([], 4, 8)


def test_shapes_end_at_the_models_context() -> None:
    policy = WithinContext(StaticBuckets((24, 32, 40)), 38)
    assert policy.buckets == (24, 32, 38)
    assert [policy.pad_length(n) for n in (20, 33, 38, 41)] == [24, 38, 38, 41]
    assert not policy.may_vary


def test_buckets_of_long_contexts_are_found_at_once() -> None:
    lengths = range(1, 32_768, 3)
    buckets = choose_buckets(lengths, 4, 8)
    assert buckets[-1] >= max(lengths)
    assert len(buckets) == 4
