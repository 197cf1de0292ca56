"""Every name of the vendor's that the libraries use can be imported from where they import it."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

# what optimum-habana 1.21.2, transformers, accelerate and DeepSpeed 0.19.8 ask for
NAMES = {
    "habana_frameworks.torch": "core hpu sdp_kernel distributed hpex utils",
    "habana_frameworks.torch.core": "mark_step hpu_set_env hpu_initialize hpu hpu_inference_set_env step_closure "
    "hpu_inference_initialize",
    "habana_frameworks.torch.core.step_closure": "_mark_step_if_lazy",
    "habana_frameworks.torch.hpu": "wrap_in_hpu_graph ModuleCacher HPUGraph Stream Event stream default_stream "
    "current_stream synchronize memory_stats get_device_name is_initialized is_autocast_hpu_enabled graph graphs "
    "get_autocast_hpu_dtype enable_dynamic_shape disable_dynamic_shape sdp_kernel random set_device current_device "
    "device_count is_available memory_allocated max_memory_allocated reset_max_memory_allocated memory_cached "
    "max_memory_cached reset_peak_memory_stats memory_reserved max_memory_reserved mem_get_info empty_cache manual_seed "
    "manual_seed_all make_graphed_callables metrics",
    "habana_frameworks.torch.hpu.graphs": "input_hash copy_to CachedParams HPUGraph wrap_in_hpu_graph",
    "habana_frameworks.torch.hpu.random": "manual_seed manual_seed_all get_rng_state get_rng_state_all set_rng_state "
    "set_rng_state_all initial_seed default_generators",
    "habana_frameworks.torch.hpu.metrics": "metric_global metric_localcontext",
    "habana_frameworks.torch.hpex.kernels": "FusedSDPA RotaryPosEmbeddingHelperV1 RotaryPosEmbeddingHelperV2 "
    "RotaryPosEmbeddingHelperV3 RotaryPosEmbeddingMode apply_rotary_pos_emb CTCLoss Fp8Ops",
    "habana_frameworks.torch.hpex.kernels.Fp8Ops": "cast_to_fp8_v2 cast_from_fp8 fp8_gemm_v2",
    "habana_frameworks.torch.hpex.normalization": "FusedRMSNorm FusedClipNorm",
    "habana_frameworks.torch.hpex.optimizers": "FusedAdamW",
    "habana_frameworks.torch.distributed.hccl": "initialize_distributed_hpu",
    "habana_frameworks.torch.utils.experimental": "_get_device_type _is_fp16_supported synDeviceType hpu",
    "habana_frameworks.torch.utils.internal": "is_lazy",
    "habana_frameworks.torch.utils.library_loader": "load_habana_module",
    "habana_frameworks.torch.dynamo.compile_backend": "hpu_backend",
    "torch.hpu": "HPUGraph ModuleCacher wrap_in_hpu_graph sdp_kernel graphs current_device set_device device_count "
    "manual_seed manual_seed_all memory_allocated max_memory_allocated reset_peak_memory_stats mem_get_info empty_cache "
    "random is_available get_device_name get_rng_state get_rng_state_all set_rng_state set_rng_state_all",
}


@pytest.mark.parametrize("module", NAMES)
def test_the_module_has_the_names(module):
    owner = torch.hpu if module == "torch.hpu" else importlib.import_module(module)
    missing = [name for name in NAMES[module].split() if not hasattr(owner, name)]
    assert missing == []


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import habana_frameworks.torch as ht

    for owner in (torch.hpu, ht.hpu, ht.hpu.random):
        assert not hasattr(owner, "no_such_name")


def test_what_optimum_habana_imports_is_here():
    """Read from the installed optimum-habana itself, so that a new release's names are noticed."""
    pytest.importorskip("optimum.habana", reason="needs the Gaudi stack")
    root = Path(str(distribution("optimum-habana").locate_file("optimum/habana")))
    wanted = set()
    for path in root.rglob("*.py"):
        for match in re.finditer(
            r"^\s*from (habana_frameworks[\w.]*) import \(?([\w, ]+)", path.read_text(), re.M
        ):
            wanted |= {(match[1], name.split(" as ")[0].strip()) for name in match[2].split(",")}
    wanted = {(module, name) for module, name in wanted if name and "transformer_engine" not in module}
    assert len(wanted) > 10
    missing = [
        f"{module}.{name}"
        for module, name in sorted(wanted)
        if not hasattr(importlib.import_module(module), name)
    ]
    assert missing == []


def test_the_device_type_follows_the_name(monkeypatch):
    from habana_frameworks.torch.utils import experimental

    for name, kind in (
        ("GAUDI", "synDeviceGaudi"),
        ("GAUDI2", "synDeviceGaudi2"),
        ("GAUDI3", "synDeviceGaudi3"),
    ):
        monkeypatch.setenv("HPU_EMULATOR_DEVICE_NAME", name)
        assert experimental._get_device_type() is experimental.synDeviceType[kind]
    assert experimental.hpu.device_count() == torch.hpu.device_count()


def test_autocast_is_seen_by_the_vendors_names():
    import habana_frameworks.torch.hpu as hthpu

    assert not hthpu.is_autocast_hpu_enabled()
    with torch.autocast("hpu", dtype=torch.bfloat16):
        assert hthpu.is_autocast_hpu_enabled()
        assert hthpu.get_autocast_hpu_dtype() == torch.bfloat16
