"""Our side: the trainers that `rlhf-hw ppo`, `sft` and `reward` make of the given flags, one turn of work at a time."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import datasets
import torch
from counting import EpochCallback, StepCounter, StepLosses, TurnCallback, counted, digest
from team import Team
from turns import Turns
from workload import Size, lengthened, order_of_updates, read_materials

from rlhf_hw.rollout import sampling

COMMON = [
    "--device",
    "cpu",
    "--report_to",
    "none",
    "--seed",
    "0",
    "--disable_tqdm",
    "True",
    "--full_finetune",
]
CONSTANT = ["--lr_scheduler_type", "constant", "--max_grad_norm", "0"]


def main() -> None:
    """For each of the job's materials make the trainer that it describes, and let it take turns."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    turns = Turns(Team.of_environment())
    stage = {"ppo": ppo, "sft": sft, "reward": reward}[job["stage"]]
    for materials in job["materials"]:
        size, data = read_materials(Path(materials))
        # transformers 4 leaves the precision of the trainer before in it, and takes it for what is asked of the next
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        stage({**job, "materials": materials}, size, data, turns)


def share(rows: int) -> str:
    """This process's part of so many rows, for a flag that counts those of each process."""
    return str(rows // int(os.environ.get("WORLD_SIZE", "1")))


# PPO
def ppo(job: dict[str, Any], size: Size, data: dict[str, Any], turns: Turns) -> None:
    """An update a turn."""
    from rlhf_hw.trainers import metrics

    metrics.time = SimpleNamespace(perf_counter=time.process_time)  # phases in CPU seconds
    turns.facts["check"] = [checked_ppo(job, size, data, full) for full in (False, True)]
    updates = order_of_updates(size, job["turns"])
    trainer = ppo_trainer(job, size, [data["prompts"][i] for update in updates for i in update], job["flags"])
    trainer.add_callback(StepCounter(turns))
    trainer.add_callback(TurnCallback(turns, ["policy/loss", "value/loss"]))
    count_phases(trainer, turns)
    turns.next()
    trainer.train()


def checked_ppo(job: dict[str, Any], size: Size, data: dict[str, Any], full: bool) -> list[float]:
    """[policy loss, value loss] of three whole-batch epochs; `full`: with answers of full length.

    The second and third epoch's losses depend on the gradients of those before.
    """
    rows = [dict(row) for row in data["prompts"][: job["check_batch"]]]
    if full:
        rows = lengthened(rows, size)
    flags = [*job["flags"], "--lam", "1", "--learning_rate", "1e-3", "--bf16", "False"]
    flags += ["--batch_size", share(len(rows)), "--mini_batch_size", share(len(rows)), "--ppo_epochs", "3"]
    trainer = ppo_trainer(job, size, rows, flags)
    trainer.train()
    logged = next(line for line in trainer.state.log_history if "policy/loss" in line)
    return [logged["policy/loss"], logged["value/loss"]]


def ppo_trainer(job: dict[str, Any], size: Size, rows: list[dict[str, Any]], flags: list[str]) -> Any:
    """The trainer of `rlhf-hw ppo` on these prompts in this order, with the planned answers."""
    from rlhf_hw.arguments.ppo import parse_ppo
    from rlhf_hw.cli.ppo import Preparation, make_trainer
    from rlhf_hw.trainers.prompts import PromptBatch

    materials = Path(job["materials"])
    argv = [*COMMON, *CONSTANT, "--model_name", str(materials / "policy")]
    argv += ["--reward_model_name", str(materials / "reward"), "--output_dir", str(materials / "out")]
    argv += ["--output_max_length", str(size.answer), "--gradient_accumulation_steps", "1"]
    argv += ["--batch_size", share(size.batch), "--mini_batch_size", share(size.minibatch)]
    argv += ["--ppo_epochs", str(size.epochs), "--learning_rate", "1e-9", "--adap_kl_ctrl", "False"]
    argv += ["--init_kl_coef", "0.05", "--steps", str(len(rows))]
    argv += [flag.format(materials=materials) for flag in flags]
    run = parse_ppo(argv)
    ready = Preparation.of(run, argv)
    ready.count_updates()
    prompts = [{"input_ids": row["prompt"], "prompt": str(i)} for i, row in enumerate(rows)]
    lengths = [len(row["input_ids"]) for row in prompts]
    trainer = make_trainer(ready, lengths=lengths, train_dataset=datasets.Dataset.from_list(prompts))
    plan_answers([row["answer"] for row in rows], size.answer)

    def batch(update: int, rank: int, world: int, count: int) -> PromptBatch:
        places = range((update * world + rank) * count, (update * world + rank + 1) * count)
        return PromptBatch([prompts[place] for place in places], list(places))

    trainer.prompts = SimpleNamespace(batch=batch)
    return trainer


def plan_answers(answers: list[list[int]], longest: int) -> None:
    """From now on, what is drawn with seed `i` is `answers[i]`: every draw is made, and then another token is told.

    The planned tokens travel in the place of the uniform numbers, which every engine keeps beside its rows.
    """
    draw = sampling_functions.sample_tokens

    def uniforms(seeds: Any, steps: int, device: Any) -> torch.Tensor:
        rows = [(answers[seed] + [0] * longest)[:steps] for seed in seeds]
        return torch.tensor(rows, dtype=torch.float32, device=device)

    def sample_tokens(logits: torch.Tensor, planned: torch.Tensor) -> torch.Tensor:
        draw(logits, planned / logits.shape[-1])
        return planned.long()

    for name, module in list(sys.modules.items()):
        if name.startswith("rlhf_hw.rollout"):
            for replaced in (uniforms, sample_tokens):
                if hasattr(module, replaced.__name__):
                    setattr(module, replaced.__name__, replaced)


sampling_functions = SimpleNamespace(sample_tokens=sampling.sample_tokens)


def count_phases(trainer: Any, turns: Turns) -> None:
    """Note each update's tokens, and its phases as the trainer logs them."""
    make, log = trainer.maker.generate_experience, trainer.log

    def generate_experience(model: Any, prompts: Any) -> Any:
        made = make(model, prompts)
        rollout = made[0].rollout
        ids = rollout.input_ids.tolist()
        ends = rollout.attention_mask.sum(dim=1).tolist()
        turns.facts["digest"] = digest([row[:end] for row, end in zip(ids, ends, strict=True)])
        turns.facts["prompt_tokens"] = sum(map(len, prompts.input_ids))
        turns.facts["answer_tokens"] = int(rollout.response_lengths.sum())
        return made

    def noted(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        trainer.timer.close()
        names = {"rollout": "rollout", "score": "score", "forward": "score", "advantage": "score"}
        for name, seconds in trainer.timer._seconds.items():
            phase = names.get(name, name)
            phases = turns.facts.setdefault("phases", {})
            phases[phase] = phases.get(phase, 0.0) + seconds
        log(logs, *args, **kwargs)

    trainer.maker.generate_experience, trainer.log = generate_experience, noted


# SFT and reward model
def sft(job: dict[str, Any], size: Size, data: dict[str, Any], turns: Turns) -> None:
    """An epoch a turn."""
    from rlhf_hw.arguments.sft import parse_sft
    from rlhf_hw.cli.session import Session
    from rlhf_hw.data.collate import SFTCollator
    from rlhf_hw.data.packing import pack
    from rlhf_hw.models.load import load_policy
    from rlhf_hw.trainers import trainer_for
    from rlhf_hw.trainers.sft import SFTMixin

    def made(rows: list[dict[str, Any]], flags: list[str], collate: Any = lambda collator: collator) -> Any:
        argv = flags_of(job, size, "policy", flags)
        run = parse_sft(argv)
        session = Session.open("sft", run, argv)
        train = datasets.Dataset.from_list(rows)
        if run.data.packing:
            train = pack(train, run.data.max_seq_length)
        model = load_policy(
            run.model.model_name_or_path, session.load_options("--model_name_or_path", trained=True)
        )
        shapes = session.shape_policy([len(row["input_ids"]) for row in rows], model)
        return trainer_for(SFTMixin, session.backend)(
            model=model,
            args=session.args,
            train_dataset=train,
            data_collator=collate(SFTCollator(0, shapes.pad_length)),
            shapes=shapes,
        )

    take_turns(job, made, data["examples"], turns)


def reward(job: dict[str, Any], size: Size, data: dict[str, Any], turns: Turns) -> None:
    """An epoch a turn."""
    from rlhf_hw.arguments.reward import parse_reward
    from rlhf_hw.cli.session import Session
    from rlhf_hw.data.collate import PairCollator
    from rlhf_hw.models.load import load_sequence_classifier
    from rlhf_hw.models.reward_model import RewardModel
    from rlhf_hw.trainers import trainer_for
    from rlhf_hw.trainers.reward import RewardMixin

    def made(rows: list[dict[str, Any]], flags: list[str], collate: Any = lambda collator: collator) -> Any:
        argv = flags_of(job, size, "reward", flags)
        run = parse_reward(argv)
        session = Session.open("reward", run, argv)
        ids = [{f"{side}_input_ids": row[side] for side in ("chosen", "rejected")} for row in rows]
        load = session.load_options("--model_name_or_path", trained=True)
        classifier = load_sequence_classifier(run.model.model_name_or_path, load, 0)
        shapes = session.shape_policy([len(side) for row in ids for side in row.values()], classifier)
        return trainer_for(RewardMixin, session.backend)(
            model=RewardModel(classifier),
            args=session.args,
            train_dataset=datasets.Dataset.from_list(ids),
            data_collator=collate(PairCollator(0, shapes.pad_length)),
            shapes=shapes,
            rm_loss=run.stage.rm_loss,
        )

    take_turns(job, made, data["pairs"], turns)


def flags_of(job: dict[str, Any], size: Size, model: str, flags: list[str]) -> list[str]:
    materials = Path(job["materials"])
    paths = ["--model_name_or_path", str(materials / model), "--output_dir", str(materials / "out")]
    data = ["--train_file", str(materials / "data.json")]  # a flag that must be there; the rows are given
    batch = ["--per_device_train_batch_size", share(size.example_batch)] if size.example_batch else []
    return [*COMMON, *CONSTANT, *paths, *data, *batch, "--save_strategy", "no", *job["flags"], *flags]


def take_turns(job: dict[str, Any], made: Any, rows: list[dict[str, Any]], turns: Turns) -> None:
    """Three checked steps on one batch; then an epoch a turn."""
    few = rows[: job["check_batch"]]
    whole = [
        "--per_device_train_batch_size",
        share(len(few)),
        "--num_train_epochs",
        "3",
        "--logging_steps",
        "1",
    ]
    trainer = made(few, [*whole, "--learning_rate", "1e-3", "--bf16", "False"])
    losses = StepLosses()
    trainer.add_callback(losses)
    trainer.train()
    turns.facts["check"] = [losses.losses]
    flags = ["--num_train_epochs", str(job["turns"]), "--learning_rate", "1e-9"]
    trainer = made(rows, flags, lambda collator: counted(collator, turns))
    trainer.add_callback(StepCounter(turns))
    trainer.add_callback(EpochCallback(turns))
    turns.next()
    trainer.train()


if __name__ == "__main__":
    main()
