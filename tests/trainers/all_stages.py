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
from rlhf_hw.compat.continuous_batching import why_no_continuous_batching
from rlhf_hw.rollout.compact import CompactEngine
from rlhf_hw.rollout.engine import Sampling
from rlhf_hw.rollout.generate import GenerateEngine
from rlhf_hw.trainers.sharding import whole_weights

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


def engines() -> list[Any]:
    """Those of the installed transformers."""
    if why_no_continuous_batching() is not None:
        return [GenerateEngine, CompactEngine]
    from rlhf_hw.rollout.continuous import ContinuousEngine

    return [GenerateEngine, CompactEngine, ContinuousEngine]


def longest_answers(trainer: Any) -> dict[str, list[int]]:
    """Of each process, by engine: answers end at the first token on the first process, and at the twelfth on the others."""
    first, prompts = trainer.accelerator.process_index == 0, [[5, 9, 13], [7]]
    ends = Sampling(12, end_tokens=frozenset(range(96))) if first else Sampling(12, min_new_tokens=12)
    found = {}
    for engine in engines():
        with whole_weights(trainer) as model:
            rollout = engine(trainer.processing_class).generate(model.policy, prompts, ends, [1, 2])
        found[engine.__name__] = trainer.accelerator.gather(rollout.response_lengths.max()[None]).tolist()
    return found


def main(directory: Path) -> None:
    """Write STAGE.pt: the weights, the log lines, an evaluation, and PPO's longest answers."""
    torch.set_num_threads(1)
    options = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    if WORLD > 1:
        options["ddp_backend"] = "gloo"
    for name, stage in STAGES.items():
        trainer = stage(directory / name, **options)
        trainer.evaluate()  # as the commands do
        trainer.train()
        longest = longest_answers(trainer) if name == "ppo" else {}
        evaluation = trainer.evaluate()
        if trainer.accelerator.is_main_process:
            logs = [row for row in trainer.state.log_history if "loss" in row]
            found = {
                "weights": weights(trainer.model),
                "logs": logs,
                "evaluation": evaluation,
                "longest": longest,
            }
            torch.save(found, directory / f"{name}.pt")
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
