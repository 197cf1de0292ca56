"""The four roles of PPO as adapters of one tiny base, made from directories as the stages before write them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from tiny_models import tiny_model

from rlhf_hw.models.adapter_files import AdapterFiles
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.models.shared_base import POLICY, VALUE, AdapterRole, SharedBase, on_layers

#: those that directories are of
ROLES = ("sft", "reward_model")


@dataclass
class SharedRoles:
    """All four, and the adapters' directories."""

    roles: ActorCritic
    reward: RewardModel
    base: SharedBase
    sft: Path
    reward_model: Path


def trained_adapter(model: Any, task: str, seed: int, directory: Path) -> Path:
    """An adapter whose weights are away from where they start, in a directory."""
    if not (directory / "adapter_config.json").is_file():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4, lora_alpha=8))
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(0.1 * torch.randn_like(weight))
        adapted.save_pretrained(directory)
    return directory


def shared_roles(directory: Path, architecture: str = "llama", *, apart: bool = False) -> SharedRoles:
    """Policy and reference from an SFT adapter, reward and value from a reward model's; `apart`: each on a base of its own.

    The same numbers for the same arguments; directories that are there already are read again.
    """
    sft = trained_adapter(tiny_model(architecture), "CAUSAL_LM", 21, directory / "sft")
    rm = trained_adapter(tiny_model(architecture, labels=1), "SEQ_CLS", 22, directory / "rm")
    files, scores = AdapterFiles.read(str(sft)), AdapterFiles.read(str(rm))
    assert scores.score is not None

    def base() -> SharedBase:
        torch.manual_seed(11)
        made = SharedBase(peft.get_peft_model(tiny_model(architecture), on_layers(files)))
        made.load(POLICY, files.tensors)
        return made

    policy = base()
    of_reference, of_reward = (base() if apart else policy for _ in range(2))
    critic: RewardModel
    if apart:
        classifier = tiny_model(architecture, labels=1)
        critic = RewardModel(peft.PeftModel.from_pretrained(classifier, rm, is_trainable=True))
    else:
        policy.add(VALUE, on_layers(scores), scores.tensors, trained=True)
        critic = AdapterRole(policy, [VALUE], scores.score, scores.config)
    reward = AdapterRole(of_reward, [of_reward.add_frozen(str(rm))], scores.score).eval()
    reward.requires_grad_(False)
    frozen = [of_reference.add_frozen(str(sft))]
    reference = None
    if apart:
        of_reference.policy_is(frozen)
        reference = of_reference.model.eval().requires_grad_(False)
    roles = ActorCritic(policy.model, critic, reference, base=policy, reference_adapters=frozen)
    return SharedRoles(roles, reward, policy, sft, rm)
