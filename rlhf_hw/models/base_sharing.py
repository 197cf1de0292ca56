"""Which roles of PPO share one set of base weights (`--share_backbone`), decided from files before a model loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_hw.arguments.ppo import PPORun, critic_adapter
from rlhf_hw.errors import UserError
from rlhf_hw.models.adapter_files import Chain, not_plain_lora, not_the_same_weights
from rlhf_hw.models.load import ADAPTER_CONFIG

#: The flags that say what a new adapter is like, and what PEFT calls it.
_SHAPE = {"lora_rank": "r", "lora_alpha": "lora_alpha", "lora_target_modules": "target_modules"}


@dataclass
class Sharing:
    """Which roles stand on the policy's base, each by the chain of its adapters. A role that is in neither mapping needs no
    weights: a reward function, a value head on the policy's trunk.
    """

    policy: Chain
    #: whether the policy goes on from the adapter that `--model_name` is, and has no new one on top of it
    continues: bool = False
    shared: dict[str, Chain] = field(default_factory=dict)
    #: role → why it holds weights of its own
    apart: dict[str, str] = field(default_factory=dict)
    #: whether the value's adapter goes on from that of its model, and is no new one on top of it
    value_continues: bool = False

    def lines(self) -> list[str]:
        """What the run says of it."""
        copies = 1 + len(self.apart)
        together = ["policy", *self.shared]
        many = "one copy" if copies == 1 else f"{copies} copies"
        whose = f"; {', '.join(together)} share one" if len(together) > 1 else ""
        why = [f"{role} apart: {reason}" for role, reason in self.apart.items()]
        return ["; ".join([f"base weights: {many} a process{whose}", *why])]


def decide_sharing(run: PPORun, reads_otherwise: Callable[[str], bool] = lambda _name: False) -> Sharing:
    """What `--share_backbone` comes to.

    Args:
        reads_otherwise: whether a reward model has another tokenizer than the policy. Left out: tokenizers are not compared.

    Raises:
        UserError: it is true, and a role cannot share the policy's base.
    """
    name = run.model.model_name_or_path
    chain = Chain.of(name)
    sharing = Sharing(chain, continues=_goes_on(run, chain))
    if run.peft.peft != "lora":
        kind = "--peft none trains every weight" if run.peft.peft is None else f"--peft {run.peft.peft}"
        obstacle: str | None = f"{kind}, and only LoRA leaves a base to share"
    else:
        obstacle = _not_lora_below(chain)
    decision = _Decision(run, reads_otherwise, sharing, obstacle)
    decision.reference()
    decision.value()
    decision.reward()
    if run.stage.share_backbone == "true" and sharing.apart:
        role, reason = next(iter(sharing.apart.items()))
        raise UserError(
            f"--share_backbone true: the {role} needs weights of its own: {reason}; change that, or give "
            "--share_backbone auto"
        )
    return sharing


@dataclass
class _Decision:
    run: PPORun
    reads_otherwise: Callable[[str], bool]
    sharing: Sharing
    obstacle: str | None  #: what keeps every role from sharing

    def _settle(self, role: str, chain: Chain, obstacle: str | None) -> None:
        why = self.obstacle or obstacle
        if self.run.stage.share_backbone == "false":
            why = "--share_backbone false"
        if why is None:
            self.sharing.shared[role] = chain
        else:
            self.sharing.apart[role] = why

    def reference(self) -> None:
        run, own = self.run, self.run.stage.reference_model_name
        if own is None and run.peft.peft not in (None, "lora") and run.stage.share_backbone != "false":
            self.sharing.shared["reference"] = Chain(self.sharing.policy.root)  # the adapter switched off
            return
        chain = self.sharing.policy if own is None else Chain.of(own)
        self._settle("reference", chain, None if own is None else self._obstacle(chain, own=True))

    def value(self) -> None:
        ppo = self.run.stage
        if not ppo.separate_critic:
            return
        name = ppo.reward_model_name if ppo.init_value_with_reward else ppo.critic_model_name
        chain = self.sharing.policy if name is None else Chain.of(name)
        obstacle = (
            "--critic_lora_rank 0 trains it whole"
            if ppo.critic_lora_rank == 0
            else self._obstacle(chain, own=name is not None)
        )
        whole = critic_adapter(self.run).peft is None
        asked = ppo.critic_lora_rank is not None or ppo.critic_lora_target_modules is not None
        from_scores = bool(chain.adapters) and name is not None and is_reward_adapter(chain.adapters[-1])
        plain = from_scores and not_plain_lora(chain.adapters[-1]) is None
        self.sharing.value_continues = (
            not whole and plain and not asked and not _other_shape(self.run, chain.adapters[-1])
        )
        self._settle("value", chain, obstacle)

    def reward(self) -> None:
        name = self.run.stage.reward_model_name
        if name is None:
            return
        chain = Chain.of(name)
        obstacle = self._obstacle(chain, own=True)
        if obstacle is None and has_tokenizer(name) and self.reads_otherwise(name):
            obstacle = f"{name} has another tokenizer"
        self._settle("reward", chain, obstacle)

    def _obstacle(self, chain: Chain, *, own: bool) -> str | None:
        """Why a model cannot be adapters on the policy's base."""
        if self.obstacle is not None or self.run.stage.share_backbone == "false":
            return None  # said already; and nothing need be read
        if own:
            if self.run.model.config_name is not None:
                return "--config_name gives the policy another configuration"
            reason = self._other_root(chain)
            if reason is not None:
                return reason
        return _not_lora_below(chain)

    def _other_root(self, chain: Chain) -> str | None:
        root = self.sharing.policy.root
        if chain.root == root and not Path(root).is_dir() and self.run.model.model_revision != "main":
            return f"the policy's base is {root} at --model_revision {self.run.model.model_revision}"
        return not_the_same_weights(root, chain.root)


def _not_lora_below(chain: Chain) -> str | None:
    return next((why for why in map(not_plain_lora, chain.adapters) if why is not None), None)


def is_reward_adapter(directory: str) -> bool:
    """Whether the adapter in `directory` has a score head."""
    return bool(_config(directory).get("task_type") == "SEQ_CLS")


def _goes_on(run: PPORun, chain: Chain) -> bool:
    """Whether the policy is to go on from the adapter that `--model_name` is: plain LoRA, and no other shape asked for."""
    if run.peft.peft != "lora" or not chain.adapters:
        return False
    last = chain.adapters[-1]
    return not_plain_lora(last) is None and not is_reward_adapter(last) and not _other_shape(run, last)


def take_over_adapter(run: PPORun, sharing: Sharing) -> None:
    """Let the settings say what the adapter is like that the policy goes on from: as given again, they go on from it."""
    if sharing.continues:
        config = _config(sharing.policy.adapters[-1])
        run.peft.lora_rank, run.peft.lora_alpha = config["r"], config["lora_alpha"]
        targets = config["target_modules"]
        run.peft.lora_target_modules = sorted(targets) if isinstance(targets, list) else None


def _other_shape(run: PPORun, directory: str) -> bool:
    """Whether the flags ask for another LoRA than the one in `directory`."""
    config = _config(directory)
    for flag, name in _SHAPE.items():
        if flag in run.given:
            asked, found = getattr(run.peft, flag), config.get(name)
            if isinstance(asked, list) and isinstance(found, list):
                asked, found = set(asked), set(found)
            if asked is not None and asked != found:
                return True
    return "lora_all_linear" in run.given and run.peft.lora_all_linear


def _config(directory: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(directory) / ADAPTER_CONFIG).read_text())
    return config


def has_tokenizer(name: str) -> bool:
    """Whether a model directory brings a tokenizer; hub models are taken to."""
    directory = Path(name)
    return not directory.is_dir() or (directory / "tokenizer_config.json").is_file()
