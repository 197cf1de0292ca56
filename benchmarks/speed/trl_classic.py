"""TRL 0.11.4's PPOTrainer (`step`), an update a turn, in an environment of its own time (transformers 4.45.2).

Configured as its users would: value head on the policy's trunk, a reference copy, the reward model asked once for the
whole batch, `generate` with the whole batch at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from counting import count_steps, digest
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from turns import Phases, Turns
from workload import EOS, PAD, Size, lengthened, order_of_updates, read_materials


def main() -> None:
    """Check the losses, then take turns."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    turns = Turns()
    turns.facts["version"] = trl.__version__
    (materials,) = map(Path, job["materials"])
    size, data = read_materials(materials)
    turns.facts["check"] = [
        checked(materials, size, data, job["check_batch"], full) for full in (False, True)
    ]
    trainer, reward = make_trainer(materials, size, size.batch, size.minibatch)
    count_steps(trainer.optimizer, turns)
    phases = Phases(turns)
    turns.next()
    for update in order_of_updates(size, job["turns"]):
        stats = one_update(trainer, reward, [data["prompts"][i] for i in update], size, turns, phases)
        turns.facts["losses"] = [float(stats["ppo/loss/policy"]), float(stats["ppo/loss/value"])]
        turns.next()


def make_trainer(
    materials: Path, size: Size, batch: int, minibatch: int, **options: Any
) -> tuple[PPOTrainer, Any]:
    """(trainer, reward model)."""
    settings: dict[str, Any] = {
        "batch_size": batch,
        "mini_batch_size": minibatch,
        "gradient_accumulation_steps": 1,
        "ppo_epochs": size.epochs,
        "learning_rate": 1e-9,
        "init_kl_coef": 0.05,
        "adap_kl_ctrl": False,
        "seed": 0,
        "accelerator_kwargs": {"cpu": True},
    }
    policy, reference = (
        AutoModelForCausalLMWithValueHead.from_pretrained(str(materials / "policy")) for _ in range(2)
    )
    torch.nn.init.zeros_(policy.v_head.summary.weight)  # as ours begins
    torch.nn.init.zeros_(policy.v_head.summary.bias)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials / "policy")
    trainer = PPOTrainer(PPOConfig(**{**settings, **options}), policy, reference, tokenizer)
    reward = AutoModelForSequenceClassification.from_pretrained(materials / "reward").eval()
    return trainer, reward


def one_update(
    trainer: PPOTrainer,
    reward: Any,
    rows: list[dict[str, Any]],
    size: Size,
    turns: Turns | None = None,
    phases: Phases | None = None,
) -> dict[str, Any]:
    """Answer, score, step."""
    begin = phases.begin if phases is not None else lambda _name: None
    begin("rollout")
    queries = [torch.tensor(row["prompt"]) for row in rows]
    plans = [row["answer"] for row in rows]
    answers = planned_answers(trainer, queries, plans, size)
    begin("score")
    scores = reward_scores(reward, queries, answers)
    begin("optimise")  # `step` also asks the reference and the value of each answer: no seam to part them at
    stats = trainer.step(queries, answers, scores)
    begin(None)
    if turns is not None:
        turns.facts["digest"] = digest(
            [[*q.tolist(), *a.tolist()] for q, a in zip(queries, answers, strict=True)]
        )
        turns.facts["prompt_tokens"] = sum(map(len, queries))
        turns.facts["answer_tokens"] = sum(map(len, answers))
    return stats


def planned_answers(trainer: PPOTrainer, queries: list[Any], plans: list[list[int]], size: Size) -> list[Any]:
    """Every token is drawn by transformers, which is then told the planned one."""
    draw, step = torch.multinomial, 0

    def multinomial(probabilities: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        nonlocal step
        draw(probabilities, *args, **options)
        told = [plan[step] if step < len(plan) else PAD for plan in plans]
        step += 1
        return torch.tensor(told)[:, None]

    torch.multinomial = multinomial
    try:
        answers = trainer.generate(
            queries,
            batch_size=len(queries),
            return_prompt=False,
            max_new_tokens=size.answer,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
    finally:
        torch.multinomial = draw
    return [answer[answer != PAD] for answer in answers]


@torch.no_grad()
def reward_scores(reward: Any, queries: list[Any], answers: list[Any]) -> list[torch.Tensor]:
    """The reward model's score of each, all in one right-padded batch."""
    rows = [torch.cat(pair) for pair in zip(queries, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return list(reward(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, 0])


def checked(materials: Path, size: Size, data: dict[str, Any], batch: int, full: bool) -> list[float]:
    """[policy loss, value loss] of three whole-batch epochs; see ours.py."""
    rows = data["prompts"][:batch]
    if full:
        rows = lengthened(rows, size)
    trainer, reward = make_trainer(
        materials, size, batch, batch, lam=1.0, learning_rate=1e-3, ppo_epochs=3, whiten_rewards=False
    )
    stats = one_update(trainer, reward, rows, size)
    return [float(stats["ppo/loss/policy"]), float(stats["ppo/loss/value"])]


if __name__ == "__main__":
    main()
