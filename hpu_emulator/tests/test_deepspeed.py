"""DeepSpeed with its own hpu accelerator: ZeRO's stages over hccl train like one plain process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow


def plain_losses() -> list[float]:
    from deepspeed_training import network

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    data = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    target = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(data), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("stage", "optimizer"), [(1, "torch"), (2, "torch"), (3, "torch"), (2, "fused")])
def test_two_processes_train_as_one_plain_process(tmp_path, stage, optimizer):
    """DeepSpeed's fused optimizer for the HPU is the device's own operator, torch.ops.hpu.optimizer_adamw."""
    script = str(Path(__file__).parent / "deepspeed_training.py")
    program = [script, str(stage), optimizer, str(tmp_path / "result")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
    environment = {**os.environ, "HPU_EMULATOR_QUIET": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "hpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    results = [json.loads((tmp_path / f"result.rank{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        assert result["accelerator"] == "hpu"
        assert result["backend"] == "hccl"
        assert result["device"].startswith("hpu")
        assert result["losses"] == pytest.approx(plain_losses(), abs=1e-5)
