"""What the hardware is asked, and what it answers where it has something or has not."""

import ast
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import backends
from backends import BACKENDS, Availability, BackendError, DynamicShapes, Precision, resolve
from backends.cpu import CPUBackend
from backends.cuda import Card, CUDABackend
from backends.hpu import HPUBackend
from backends.shapes import StaticBuckets

ROOT = Path(backends.__file__).parent
HALF = Precision("bf16", torch.bfloat16, "for a test")


def cpu_units(monkeypatch: pytest.MonkeyPatch, amx: bool = False, avx: bool = False) -> CPUBackend:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    return CPUBackend()


def card(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> CUDABackend:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    return CUDABackend()


# --- picking one -----------------------------------------------------------------------------------------------


def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto").name == "cpu"
    assert resolve("cpu").name == "cpu"


def test_auto_prefers_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, "H200", (9, 0))
    assert resolve("auto").name == "cuda"
    assert resolve("cuda").device_type == "cuda"


def test_cuda_without_a_card_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        BackendError, match=r"--device cuda: .*sees no GPU.*nvidia-smi.*CUDA_VISIBLE_DEVICES.*--device auto"
    ):
        resolve("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match=r"--device cuda: .*without CUDA; install the CUDA build"):
        resolve("cuda")


@pytest.mark.parametrize("device", ["tpu", "gpu", "CUDA", ""])
def test_an_unknown_device_is_answered_with_the_known_ones(device: str) -> None:
    with pytest.raises(BackendError, match=rf"--device {device}: unknown; choose auto, cuda, .*cpu"):
        resolve(device)


def test_a_new_device_is_one_subclass_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam by which the next device comes in: `auto` asks it in its turn, by name it explains itself."""

    class NewBackend(CPUBackend):
        name = "new"
        there = False

        @classmethod
        def available(cls) -> Availability:
            return Availability(cls.there, "plug it in")

        def shape_policy(self, lengths: Sequence[int] = ()) -> Any:
            return StaticBuckets((512,))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(HPUBackend, "available", lambda: Availability(False, "no Gaudi"))
    table = {"new": NewBackend, **BACKENDS}
    monkeypatch.setitem(resolve.__globals__, "BACKENDS", table)
    assert resolve("auto").name == "cpu"
    with pytest.raises(BackendError, match="--device new: plug it in"):
        resolve("new")
    NewBackend.there = True
    assert resolve("auto").name == "new"
    assert not resolve("new").shape_policy().may_vary


# --- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amx", "avx", "bf16", "autocast", "dtype", "reason"),
    [
        (True, True, None, "bf16", torch.bfloat16, "AMX"),
        (False, True, None, "bf16", torch.bfloat16, "AVX512-BF16"),
        (False, False, None, "no", torch.float32, "no bf16 units"),
        (True, True, False, "no", torch.float32, "fp32 as asked"),
        (False, False, True, "bf16", torch.bfloat16, "expect it to be slow"),
        (True, False, True, "bf16", torch.bfloat16, "as asked (AMX)"),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, bf16: Any, autocast: str, dtype: Any, reason: str
) -> None:
    found = cpu_units(monkeypatch, amx, avx).precision(bf16, None)
    assert (found.autocast, found.frozen_dtype) == (autocast, dtype)
    assert reason in found.reason


def test_a_cpu_has_no_fp16() -> None:
    with pytest.raises(BackendError, match=r"--fp16: .*use --bf16 or neither"):
        CPUBackend().precision(None, True)


@pytest.mark.parametrize(
    ("capability", "bf16", "fp16", "autocast", "dtype", "reason"),
    [
        ((9, 0), None, None, "bf16", torch.bfloat16, "bf16 tensor cores"),
        ((8, 0), None, False, "bf16", torch.bfloat16, "bf16 tensor cores"),
        ((7, 5), None, None, "no", torch.float32, "has no bf16"),
        ((9, 0), False, None, "no", torch.float32, "fp32 as asked"),
        ((7, 5), None, True, "fp16", torch.float16, "fp16 as asked"),
        ((9, 0), True, None, "bf16", torch.bfloat16, "bf16"),
    ],
)
def test_a_card_computes_in_what_it_has_units_for(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    bf16: Any,
    fp16: Any,
    autocast: str,
    dtype: Any,
    reason: str,
) -> None:
    found = card(monkeypatch, "Card", capability).precision(bf16, fp16)
    assert (found.autocast, found.frozen_dtype) == (autocast, dtype)
    assert reason in found.reason


def test_bf16_on_a_card_without_it_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"--bf16: T4 \(compute capability 7\.5\).*use --fp16"):
        card(monkeypatch, "T4", (7, 5)).precision(True, None)


# --- the rest of the questions ---------------------------------------------------------------------------------


def test_attention_names_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CPUBackend().attention_implementation(HALF).value == "sdpa"
    backend = card(monkeypatch, "H200", (9, 0))
    monkeypatch.setattr("backends.cuda.find_spec", lambda name: None)
    assert backend.attention_implementation(HALF).value == "sdpa"
    assert "flash-attn" in backend.attention_implementation(HALF).reason
    monkeypatch.setattr("backends.cuda.find_spec", lambda name: name)
    assert backend.attention_implementation(HALF).value == "flash_attention_2"
    assert card(monkeypatch, "V100", (7, 0)).attention_implementation(HALF).value == "sdpa"


def test_quantized_weights_need_bitsandbytes_and_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"--qlora, --load_in_4bit: .*not on the hpu backend"):
        HPUBackend().quantization_config(4, True, "nf4", HALF)
    monkeypatch.setattr("backends.quantization.find_spec", lambda name: None)
    for backend in (card(monkeypatch, "H200", (9, 0)), CPUBackend()):
        with pytest.raises(
            BackendError, match="--load_in_8bit: needs bitsandbytes; pip install bitsandbytes"
        ):
            backend.quantization_config(8, True, "nf4", HALF)


def test_shapes_are_rounded_up_and_never_down() -> None:
    for multiple in (1, 8):
        policy = DynamicShapes(multiple)
        for longest in range(1, 40):
            padded = policy.pad_length(longest)
            assert longest <= padded < longest + multiple
            assert padded % multiple == 0
    assert CPUBackend().shape_policy([5, 9]).pad_length(9) == 9


@pytest.mark.parametrize("name", BACKENDS)
def test_the_training_arguments_are_accepted_by_their_class(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name == "cuda":
        card(monkeypatch, "H200", (9, 0))
    backend = BACKENDS[name]()
    for world in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        overrides = backend.training_argument_overrides()
        fields = backend.training_arguments_class.__dataclass_fields__
        assert set(overrides) <= set(fields)


def test_several_cpu_processes_speak_through_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert CPUBackend().training_argument_overrides()["ddp_backend"] == "gloo"


def test_each_local_rank_has_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert CUDABackend().device == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    assert CUDABackend().device == torch.device("cuda", 0)


def test_cards_are_described_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [SimpleNamespace(name="V100", total_memory=2**34, major=7, minor=0)]
    seen += [SimpleNamespace(name="H200", total_memory=2**37, major=9, minor=0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen[index])
    assert CUDABackend.cards() == [Card("V100", 2**34, "7.0", False), Card("H200", 2**37, "9.0", True)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CUDABackend.cards() == []


def test_a_rank_that_sees_one_card_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert CUDABackend().device == torch.device("cuda", 0)


def test_flash_attention_is_not_chosen_for_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = card(monkeypatch, "A100", (8, 0))
    monkeypatch.setattr("backends.cuda.find_spec", lambda name: name)
    assert backend.attention_implementation(HALF).value == "flash_attention_2"
    assert backend.attention_implementation(backend.precision(False, False)).value == "sdpa"


def test_one_seed_settles_every_generator() -> None:
    found = []
    for _ in range(2):
        CPUBackend().seed_everything(5)
        found.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert found[0] == found[1]


def test_memory_is_measured() -> None:
    memory = CPUBackend().memory_statistics()
    assert 0 < memory.in_use <= memory.limit
    assert 0 < memory.peak <= memory.limit


def test_a_description_names_no_person_or_host() -> None:
    import getpass
    import socket

    described = str(CPUBackend().describe())
    assert socket.gethostname() not in described
    assert getpass.getuser() not in described or getpass.getuser() == "root"
    assert CPUBackend().describe()["backend"] == "cpu"


def test_backends_know_nothing_of_the_product() -> None:
    """Every arrow points down: rlhf_hw imports backends, never the other way round."""
    for path in ROOT.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] in ("rlhf_hw", "launchers") for name in names), path
