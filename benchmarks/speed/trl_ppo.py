"""TRL 1.12's PPOTrainer, an update a turn. Runs with TRL 1.12 first on PYTHONPATH, beside current transformers.

Configured as its users would: fp32 (its PPO builds the accelerator without `bf16`), a separate value model (it knows no
other), the whole batch rolled out at once, minibatches as ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import trl
from counting import TurnCallback, count_steps, digest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from turns import Phases, Turns
from workload import PAD, Size, lengthened, order_of_updates, read_materials


def main() -> None:
    """For each of the job's materials check the losses, then take turns."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    turns = Turns()
    turns.facts["version"] = trl.__version__
    for materials in map(Path, job["materials"]):
        size, data = read_materials(materials)
        turns.facts["check"] = [
            checked(materials, size, data, job["check_batch"], full) for full in (False, True)
        ]
        updates = order_of_updates(size, job["turns"])
        rows = [[data["prompts"][i] for i in update] for update in updates]
        trainer = make_trainer(
            materials, size, rows, [TurnCallback(turns, ["loss/policy_avg", "loss/value_avg"])]
        )
        count_steps(trainer.optimizer, turns)
        with counted_phases(trainer, turns, [row for update in rows for row in update]):
            turns.next()
            trainer.train()


def make_trainer(
    materials: Path, size: Size, updates: list[list[dict[str, Any]]], callbacks: Any = None, **options: Any
) -> PPOTrainer:
    """A trainer that answers these prompts, an update each."""
    batch = len(updates[0])
    settings: dict[str, Any] = {
        "output_dir": str(materials / "trl-out"),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 0,
        "total_episodes": batch * len(updates),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": batch // size.minibatch,
        "num_ppo_epochs": size.epochs,
        "local_rollout_forward_batch_size": batch,
        "response_length": size.answer,
        "temperature": 1.0,
        "stop_token": "eos",
        "learning_rate": 1e-9,
        "lr_scheduler_type": "constant",
        "num_sample_generations": 0,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(materials / "policy")
    policy, reference = (AutoModelForCausalLM.from_pretrained(materials / "policy") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(materials / "reward") for _ in range(2)
    )
    prompts = [{"input_ids": row["prompt"]} for update in updates for row in update]
    trainer = PPOTrainer(
        args=PPOConfig(**{**settings, **options}),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=datasets.Dataset.from_list(prompts),
        eval_dataset=datasets.Dataset.from_list(prompts[:1]),
        callbacks=callbacks,
    )
    # the batches of our schedule, in its own collator
    trainer.dataloader = [
        trainer.data_collator([{"input_ids": row["prompt"]} for row in update]) for update in updates
    ]
    plan_answers(trainer, [row for update in updates for row in update])
    return trainer


def plan_answers(trainer: PPOTrainer, rows: list[dict[str, Any]]) -> None:
    """Every token is drawn by TRL, which is then told the planned one."""
    answers = {tuple(row["prompt"]): row["answer"] for row in rows}
    generate, draw = trainer.policy_model.generate, torch.multinomial

    def planned_generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        prompts = [
            tuple(row[mask].tolist()) for row, mask in zip(input_ids, attention_mask.bool(), strict=True)
        ]
        plans = [answers[prompt] for prompt in prompts]
        step = 0

        def multinomial(probabilities: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            nonlocal step
            drawn = draw(probabilities, *args, **options)
            told = [plan[step] if step < len(plan) else PAD for plan in plans]
            step += 1
            return torch.tensor(told, device=drawn.device)[:, None]

        torch.multinomial = multinomial
        try:
            return generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        finally:
            torch.multinomial = draw

    trainer.policy_model.generate = planned_generate


@contextmanager
def counted_phases(trainer: PPOTrainer, turns: Turns, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, each update's tokens are noted, and when its phases begin."""
    phases = Phases(turns)
    roll_out, permute, log = ppo_trainer.batch_generation, np.random.permutation, trainer.log
    prompts = {tuple(row["prompt"]) for row in rows}

    def batch_generation(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        phases.begin("rollout")
        sequences, logits = roll_out(model, queries, *args)
        phases.begin("score")
        real = [[token for token in row if token != PAD] for row in sequences.tolist()]
        questions = [tuple(token for token in row if token != PAD) for row in queries.tolist()]
        assert all(question in prompts for question in questions)
        turns.facts["digest"] = digest(real)
        turns.facts["prompt_tokens"] = sum(map(len, questions))
        turns.facts["answer_tokens"] = sum(map(len, real)) - turns.facts["prompt_tokens"]
        return sequences, logits

    def permutation(*args: Any) -> Any:
        phases.begin("optimise")
        return permute(*args)

    def ended(*args: Any, **kwargs: Any) -> None:
        phases.begin(None)
        log(*args, **kwargs)

    ppo_trainer.batch_generation, np.random.permutation, trainer.log = batch_generation, permutation, ended
    try:
        yield
    finally:
        ppo_trainer.batch_generation, np.random.permutation = roll_out, permute


def checked(materials: Path, size: Size, data: dict[str, Any], batch: int, full: bool) -> list[float]:
    """[policy loss, value loss] of three whole-batch epochs; see ours.py."""
    rows = data["prompts"][:batch]
    if full:
        rows = lengthened(rows, size)
    options = {"lam": 1.0, "learning_rate": 1e-3, "num_ppo_epochs": 3, "num_mini_batches": 1}
    trainer = make_trainer(materials, size, [rows], **options)
    trainer.train()
    logged = next(line for line in trainer.state.log_history if "loss/policy_avg" in line)
    return [logged["loss/policy_avg"], logged["loss/value_avg"]]


if __name__ == "__main__":
    main()
