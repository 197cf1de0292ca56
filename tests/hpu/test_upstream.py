"""What `backends/optimum_habana.py` mends in optimum-habana is still broken there (else the mending can go), and works once
it is mended.

Each in one process of its own: optimum-habana changes transformers for good.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from parity import OPTIMUM

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OPTIMUM, reason="about optimum-habana, which the Gaudi stack has"),
]

PROGRAM = str(Path(__file__).with_name("optimum_caches.py"))
CACHES = ("shared", "llama", "gemma", "gptj", "qwen2_moe", "deepseek_v2", "deepseek_v3")
#: Decoders whose keys and values are cached in a way of their own.
ARCHITECTURES = ("gpt2", "opt", "qwen2", "mistral", "falcon", "gpt_neox", "gptj")


def results(kind: str, architectures: tuple[str, ...]) -> dict[str, str]:
    """Check → "" or the error that it ended with, of a process with optimum-habana as it is, or mended."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
        "PT_HPU_LAZY_MODE": "1",
    }
    words = [sys.executable, "-W", "ignore", PROGRAM, kind, *architectures]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def upstream() -> dict[str, str]:
    return results("upstream", ("opt", "gptj"))


@pytest.fixture(scope="module")
def mended() -> dict[str, str]:
    return results("mended", ARCHITECTURES)


def test_upstream_still_recomputes_a_layer_from_the_wrong_inputs(upstream: dict[str, str]) -> None:
    """Where this fails, `_mend_checkpointing` can go."""
    assert upstream["recompute"].startswith("TypeError")


@pytest.mark.parametrize("cache", CACHES)
def test_upstream_still_cannot_cache_keys_of_another_dtype(upstream: dict[str, str], cache: str) -> None:
    """Where this fails for all of them, `_mend_caches` can go."""
    assert "same dtype" in upstream[f"cache {cache}"]


def test_upstream_still_caches_a_gptj_past_its_cache(upstream: dict[str, str]) -> None:
    """Where this fails, `_mend_gptj` can go."""
    assert "same dtype" in upstream["generate gptj"]


def test_upstream_still_miscounts_the_positions_of_an_opt(upstream: dict[str, str]) -> None:
    """Where this fails, `_mend_opt_positions` can go."""
    assert "standard deviations below the largest" in upstream["generate opt"]


@pytest.mark.parametrize("check", ["recompute", *(f"cache {cache}" for cache in CACHES)])
def test_it_works_once_mended(mended: dict[str, str], check: str) -> None:
    assert mended[check] == ""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_weights_answer_under_bf16_with_a_cache_as_without(
    mended: dict[str, str], architecture: str
) -> None:
    assert mended[f"generate {architecture}"] == ""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whether_layers_recompute_is_told_as_it_is(mended: dict[str, str], architecture: str) -> None:
    """optimum-habana's OPT and GPT-2 recompute nothing, which a run says."""
    assert mended[f"recomputes {architecture}"] == ""
