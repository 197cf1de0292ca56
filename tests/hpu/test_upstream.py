"""What `backends/optimum_habana.py` mends in optimum-habana is still broken there: else the mending can go.

In processes of their own, with nothing mended.
"""

from __future__ import annotations

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

UNMENDED = """
import torch
from backends import optimum_habana
with optimum_habana._torchvision_importable():
    import optimum.habana.transformers.gradient_checkpointing as upstream
    from optimum.habana.transformers.models.modeling_all_models import KVCache
    from optimum.habana.transformers.models.llama.modeling_llama import KVCache as LlamaKVCache
    from optimum.habana.transformers.models.gemma.modeling_gemma import KVCache as GemmaKVCache
"""
MENDED = UNMENDED + "\noptimum_habana.optimum_habana()\n"

RECOMPUTE = """
inputs = [torch.full((2,), 2.0, requires_grad=True) for _ in range(3)]
upstream.checkpoint(lambda a, b, c: a.exp() * b * c, *inputs, use_reentrant=False).sum().backward()
expected = torch.full((2,), 2.0).exp() * 4
assert torch.equal(inputs[0].grad, expected), inputs[0].grad
"""
CACHE = """
for cache in (KVCache, LlamaKVCache, GemmaKVCache):
    kept, key = torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    assert cache().update(kept, key, 2, torch.tensor([2]), 0)[0, 0, :, 0].tolist() == [0, 1, 0, 0]
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )


def test_upstream_still_recomputes_a_layer_from_the_wrong_inputs() -> None:
    """Where this fails, `_mend_checkpointing` can go."""
    done = run(UNMENDED + RECOMPUTE)
    assert done.returncode == 1
    assert "TypeError" in done.stderr, done.stderr[-2000:]


def test_upstream_still_cannot_cache_keys_of_another_dtype() -> None:
    """Where this fails, `_mend_caches` can go."""
    done = run(UNMENDED + CACHE)
    assert done.returncode == 1
    assert "same dtype" in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("program", [RECOMPUTE, CACHE])
def test_both_work_once_mended(program: str) -> None:
    done = run(MENDED + program)
    assert done.returncode == 0, done.stderr[-2000:]
