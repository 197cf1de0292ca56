"""Trains each stage for a few steps in this process, or in each of those that torchrun started, and keeps what came out.

    python -m torch.distributed.run --nproc_per_node 2 all_stages.py DIRECTORY

Both see the same data with the same number of examples an optimizer step: one process takes them in two micro-batches
(SFT, reward) or in one larger batch (PPO).
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_model
from tiny_runs import ppo_settings, ppo_trainer, reward_trainer, roles, sft_trainer, text_blocks, weights

from backends.process_group import leave_process_group

WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def sft(directory: Path, **options: Any) -> Any:
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2 // WORLD, "max_steps": 3}
    return sft_trainer(directory, tiny_model(), **options)


def reward(directory: Path, **options: Any) -> Any:
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2 // WORLD, "max_steps": 3}
    return reward_trainer(directory, tiny_model(labels=1), **options)


def ppo(directory: Path, **options: Any) -> Any:
    """One optimizer step an epoch, with everything in it that is worked out over all processes."""
    settings = ppo_settings(
        batch_size=4 // WORLD,
        generation_batches=2,
        mini_batch_size=8 // WORLD,
        unsup_coef=0.5,
        steps=24,
        adap_kl_ctrl=True,
        kl_target=0.1,
        kl_horizon=50,
        use_score_scaling=True,
        use_score_norm=True,
        whiten_rewards=True,
    )
    return ppo_trainer(
        directory, roles(), settings, world_size=WORLD, unsupervised=text_blocks(10), **options
    )


STAGES = {"sft": sft, "reward": reward, "ppo": ppo}


def main(directory: Path) -> None:
    """Write STAGE.pt: the weights, the log lines, and an evaluation."""
    torch.set_num_threads(1)
    options = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    if WORLD > 1:
        options["ddp_backend"] = "gloo"
    for name, stage in STAGES.items():
        trainer = stage(directory / name, **options)
        trainer.evaluate()  # as the commands do
        trainer.train()
        evaluation = trainer.evaluate()
        if trainer.accelerator.is_main_process:
            logs = [row for row in trainer.state.log_history if "loss" in row]
            found = {"weights": weights(trainer.model), "logs": logs, "evaluation": evaluation}
            torch.save(found, directory / f"{name}.pt")
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
