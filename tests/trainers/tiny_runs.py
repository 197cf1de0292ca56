"""Trainers of each stage on tiny models and tiny data, on the CPU in fp32: for tests and the programs they start."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
from tiny_models import tiny_model, word_tokenizer
from transformers import TrainingArguments

import backends
from backends.shapes import DynamicShapes, RolloutShapes, ShapePolicy
from rlhf_hw.arguments.ppo import PPOArguments
from rlhf_hw.data.collate import PairCollator, SFTCollator
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.rollout.compact import CompactEngine
from rlhf_hw.rollout.engine import Rollout
from rlhf_hw.trainers import trainer_for
from rlhf_hw.trainers.ppo import PPOMixin, collate_indices, steps_per_update, updates_in
from rlhf_hw.trainers.reward import RewardMixin
from rlhf_hw.trainers.sft import SFTMixin

RAGGED = (9, 4, 7, 12, 5, 6, 10, 3)


# Data
def random_ids(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Rows of word ids of the given lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 96, (length,), generator=generator).tolist() for length in lengths]


def sft_rows(lengths: Sequence[int] = RAGGED, seed: int = 0) -> datasets.Dataset:
    """Examples of ragged lengths; the first third of each is its prompt."""
    ids = random_ids(lengths, seed)
    masks = [[0] * (len(row) // 3) + [1] * (len(row) - len(row) // 3) for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "loss_mask": masks})


def pair_rows(count: int = 8, seed: int = 0) -> datasets.Dataset:
    """Pairs of ragged lengths."""
    ids = random_ids([4 + (5 * i) % 7 for i in range(2 * count)], seed)
    return datasets.Dataset.from_dict({"chosen_input_ids": ids[:count], "rejected_input_ids": ids[count:]})


def prompt_rows(count: int = 8, seed: int = 0) -> datasets.Dataset:
    """Prompts of 2 to 6 words, with their text."""
    ids = random_ids([2 + (3 * i) % 5 for i in range(count)], seed)
    texts = [" ".join(f"w{token}" for token in row) for row in ids]
    answers = [f"answer {i}" for i in range(count)]
    return datasets.Dataset.from_dict({"input_ids": ids, "prompt": texts, "chosen": answers})


def text_blocks(count: int = 6, length: int = 10, seed: int = 4) -> datasets.Dataset:
    """Blocks of unsupervised text, all of one length."""
    return datasets.Dataset.from_dict({"input_ids": random_ids([length] * count, seed)})


def word_score(rollout: Rollout, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Mean of the answer's word numbers, from -1 to 1: a reward that leaves no two answers alike."""
    answers = rollout.response_ids()
    return torch.tensor([sum(token / 48 - 1 for token in answer) / len(answer) for answer in answers])


# Models
def with_lora(model: Any, task: str = "CAUSAL_LM") -> Any:
    """LoRA as it starts: its output is zero."""
    torch.manual_seed(11)
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4, lora_alpha=8))


def roles(
    architecture: str = "llama", *, adapter: bool = False, separate: bool = False, temperature: float = 1.0
) -> ActorCritic:
    """An actor-critic: LoRA on one base (`adapter`) or whole models; the value on the trunk, or `separate`."""
    policy, reference, critic = tiny_model(architecture), None, None
    if adapter:
        policy = with_lora(policy)
    else:
        reference = tiny_model(architecture).requires_grad_(False)
    if separate:
        classifier = tiny_model(architecture, labels=1, seed=5)
        critic = RewardModel(with_lora(classifier, "SEQ_CLS") if adapter else classifier)
    return ActorCritic(policy, critic, reference, temperature)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# Trainers
def arguments(directory: Path, **overrides: Any) -> TrainingArguments:
    """Training arguments as the command line makes them, but for what is given."""
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "seed": 3,
    }
    return TrainingArguments(**{**settings, **overrides})


def sft_trainer(
    directory: Path, model: Any, rows: Any = None, shapes: ShapePolicy | None = None, **overrides: Any
) -> Any:
    shapes = shapes or DynamicShapes()
    return trainer_for(SFTMixin, backends.resolve("cpu"))(
        model=model,
        args=arguments(directory, **overrides),
        train_dataset=sft_rows() if rows is None else rows,
        eval_dataset=sft_rows(seed=1),
        data_collator=SFTCollator(0, shapes.pad_length),
        shapes=shapes,
    )


def reward_trainer(
    directory: Path,
    model: Any,
    rows: Any = None,
    shapes: ShapePolicy | None = None,
    rm_loss: str = "last_token",
    **overrides: Any,
) -> Any:
    shapes = shapes or DynamicShapes()
    return trainer_for(RewardMixin, backends.resolve("cpu"))(
        model=RewardModel(model),
        args=arguments(directory, **overrides),
        train_dataset=pair_rows() if rows is None else rows,
        eval_dataset=pair_rows(5, seed=1),
        data_collator=PairCollator(0, shapes.pad_length),
        shapes=shapes,
        rm_loss=rm_loss,
    )


def ppo_settings(**overrides: Any) -> PPOArguments:
    """A small, quick PPO: 8 answers an update, two epochs of two optimizer steps."""
    settings: dict[str, Any] = {
        "batch_size": 8,
        "mini_batch_size": 4,
        "ppo_epochs": 2,
        "steps": 32,
        "output_max_length": 6,
        "adap_kl_ctrl": False,
    }
    return PPOArguments(**{**settings, **overrides})


def ppo_trainer(
    directory: Path,
    model: ActorCritic,
    settings: PPOArguments | None = None,
    scorer: Any = word_score,
    rows: Any = None,
    statistics: Any = None,
    world_size: int = 1,
    shapes: RolloutShapes | None = None,
    unsupervised: Any = None,
    **overrides: Any,
) -> Any:
    shapes = shapes or RolloutShapes()
    settings = settings or ppo_settings()
    per_update = steps_per_update(settings, overrides.get("gradient_accumulation_steps", 1))
    counted = {
        "max_steps": updates_in(settings, world_size) * per_update,
        "per_device_train_batch_size": settings.mini_batch_size,
        "logging_steps": per_update,
    }
    tokenizer = word_tokenizer()
    return trainer_for(PPOMixin, backends.resolve("cpu"))(
        model=model,
        args=arguments(directory, **{**counted, **overrides}),
        train_dataset=prompt_rows() if rows is None else rows,
        eval_dataset=prompt_rows(5, seed=1).add_column("index", list(range(5))),
        data_collator=collate_indices,
        processing_class=tokenizer,
        settings=settings,
        engine=CompactEngine(tokenizer, shapes, settings.batch_size),
        scorer=scorer,
        shapes=shapes,
        synchronize=lambda: None,
        statistics=statistics,
        unsupervised=unsupervised,
    )
