"""TRL 1.16's SFTTrainer and RewardTrainer on the same rows, an epoch a turn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from counting import EpochCallback, StepCounter, StepLosses, counted
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from turns import Turns
from workload import read_materials


def main() -> None:
    """Three checked steps on one batch; then an epoch a turn."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    turns = Turns()
    turns.facts["version"] = trl.__version__
    (job["materials"],) = job["materials"]
    _, data = read_materials(Path(job["materials"]))
    make = {"sft": sft_trainer, "reward": reward_trainer}[job["stage"]]
    rows = data[{"sft": "examples", "reward": "pairs"}[job["stage"]]]
    few = rows[: job["check_batch"]]
    whole = {"per_device_train_batch_size": len(few), "num_train_epochs": 3, "learning_rate": 1e-3}
    plain = {**job["settings"], "bf16": False, "gradient_checkpointing": False}
    trainer = make(job, few, {**plain, **whole, "logging_steps": 1})
    losses = StepLosses()
    trainer.add_callback(losses)
    trainer.train()
    turns.facts["check"] = [losses.losses]
    lasting = {"num_train_epochs": job["turns"], "learning_rate": 1e-9}
    trainer = make(job, rows, {**job["settings"], **lasting})
    trainer.data_collator = counted(trainer.data_collator, turns)
    trainer.add_callback(StepCounter(turns))
    trainer.add_callback(EpochCallback(turns))
    turns.next()
    trainer.train()


def arguments(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What both trainers are given beside the job's settings."""
    return {
        "output_dir": str(Path(job["materials"]) / "trl-out"),
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": 512,
        **settings,
    }


def sft_trainer(job: dict[str, Any], rows: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    """On tokenized rows; only the last two thirds of each are learnt."""
    directory = Path(job["materials"]) / "policy"
    columns = [{"input_ids": row["input_ids"], "completion_mask": row["loss_mask"]} for row in rows]
    return trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory),
        args=trl.SFTConfig(**arguments(job, settings), completion_only_loss=True),
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(directory),
    )


def reward_trainer(job: dict[str, Any], rows: list[dict[str, Any]], settings: dict[str, Any]) -> Any:
    """On tokenized pairs."""
    directory = Path(job["materials"]) / "reward"
    columns = [{f"{side}_ids": row[side] for side in ("chosen", "rejected")} for row in rows]
    return trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(directory),
        args=trl.RewardConfig(**arguments(job, settings)),
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(directory),
    )


if __name__ == "__main__":
    main()
