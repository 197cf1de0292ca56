"""What test_deepspeed.py starts: a small network trained by DeepSpeed. Writes losses and weights to the path given.

python deepspeed_training.py <zero stage> <torch or fused: which AdamW> <path>
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))


def main(stage: int, optimizer: str, path: Path) -> None:
    world = int(os.environ["WORLD_SIZE"])
    deepspeed.init_distributed(get_accelerator().communication_backend_name())
    rank = torch.distributed.get_rank()
    config = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // world,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-2, "weight_decay": 0.0, "torch_adam": optimizer == "torch"},
        },
        "gradient_clipping": 1.0,
    }
    model = network()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    data = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    target = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    losses = []
    for _ in range(5):
        output = engine(data[share].to(engine.device))
        loss = torch.nn.functional.mse_loss(output, target[share].to(engine.device))
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / world)
    result = {
        "losses": losses,
        "device": str(engine.device),
        "accelerator": get_accelerator().device_name(),
        "backend": torch.distributed.get_backend(),
    }
    path.with_suffix(f".rank{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
