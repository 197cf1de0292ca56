"""The models of a stage as its flags name them, at any depth: what trains, in which precision, what is shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.ppo import PPOArguments
from rlhf_hw.arguments.run import Run
from rlhf_hw.estimate.fakes import as_prepared_for_bits, causal_model, classifier, quantized_bytes
from rlhf_hw.estimate.sizes import are_layers_alike, config_of_sizes, model_config, with_layers
from rlhf_hw.models.adapters import adapter_config, attach_adapter
from rlhf_hw.models.load import LoadOptions
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.roles import ActorCritic

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Conditions:
    """Where a stage would run. memory: GiB of one card. autocast and attention: as its backend would choose them."""

    card: str
    memory: float
    processes: int
    autocast: str
    frozen_dtype: torch.dtype
    attention: str
    pads_to: int = 1
    quantized: bool = True  #: whether weights can be held in 4 bits
    foreach: bool = False  #: whether an optimizer that is not fused takes all weights at once

    def padded(self, tokens: int) -> int:
        """What rows of so many tokens are padded to."""
        return -(-tokens // self.pads_to) * self.pads_to


@dataclass(frozen=True)
class Weights:
    """Bytes of a role's weights that are frozen and that train, and how many train. largest: a dequantized layer's."""

    frozen: int = 0
    trained: int = 0
    parameters: int = 0
    all_parameters: int = 0
    largest: int = 0
    matrices: tuple[tuple[int, ...], ...] = ()  #: shapes of the weights that train

    @property
    def bytes(self) -> int:
        return self.frozen + self.trained


class Models:
    """Makes the models of `run` on the meta device. `sizes`: `--sizes`, in place of the model that is named."""

    def __init__(self, run: Run, conditions: Conditions, sizes: str | None = None) -> None:
        self.run = run
        self.conditions = conditions
        self.sizes = sizes

    # Configurations
    @cached_property
    def policy_config(self) -> Any:
        if self.sizes is not None:
            return config_of_sizes(self.sizes)
        model = self.run.model
        return self._config(model.config_name or model.model_name_or_path, "--model_name_or_path")

    def _config(self, name: str, flag: str) -> Any:
        model = self.run.model
        if self.sizes is not None and name == model.model_name_or_path:
            return self.policy_config
        options = LoadOptions(
            flag=flag,
            cache_dir=model.cache_dir,
            token=model.hub_token(),
            trust_remote_code=model.trust_remote_code,
        )
        return model_config(name, options)

    @cached_property
    def configs(self) -> dict[str, Any]:
        """Role → configuration, of the models that are apart: policy, critic, reference, reward."""
        found = {"policy": self.policy_config}
        ppo = self.run.stage
        if not isinstance(ppo, PPOArguments):
            return found
        name = self.run.model.model_name_or_path
        if ppo.separate_critic:
            own = ppo.reward_model_name if ppo.init_value_with_reward else ppo.critic_model_name
            found["critic"] = self._config(own or name, "--critic_model_name")
        if ppo.reference_model_name is not None or self.run.peft.peft is None:
            found["reference"] = self._config(ppo.reference_model_name or name, "--reference_model_name")
        if ppo.reward_model_name is not None:
            found["reward"] = self._config(ppo.reward_model_name, "--reward_model_name")
        return found

    @property
    def layers(self) -> dict[str, int]:
        """Role → its number of layers."""
        return {role: int(config.num_hidden_layers) for role, config in self.configs.items()}

    @property
    def alike(self) -> bool:
        return all(are_layers_alike(config) for config in self.configs.values())

    # Models
    def policy(self, layers: int | None = None) -> Any:
        """The causal model that trains, with its adapter."""
        config = with_layers(self.configs["policy"], layers or self.layers["policy"])
        return self._adapted(
            causal_model(config, self._dtype(trained=True), self.conditions.attention), "CAUSAL_LM"
        )

    def reference(self, layers: int | None = None) -> Any:
        """A reference of its own, frozen."""
        config = with_layers(self.configs["reference"], layers or self.layers["reference"])
        copied = getattr(self.run.stage, "reference_model_name", None) is None
        dtype = self._dtype(trained=copied)
        return causal_model(config, dtype, self.conditions.attention).requires_grad_(False)

    def reward(self, layers: int | None = None) -> RewardModel:
        """The reward model that scores, frozen."""
        config = with_layers(self.configs["reward"], layers or self.layers["reward"])
        made = classifier(config, self._dtype(trained=False), self.conditions.attention)
        return RewardModel(made.requires_grad_(False))

    def reward_in_training(self, layers: int | None = None) -> RewardModel:
        """The model of the reward stage."""
        config = with_layers(self.configs["policy"], layers or self.layers["policy"])
        made = classifier(config, self._dtype(trained=True), self.conditions.attention)
        return RewardModel(self._adapted(made, "SEQ_CLS"))

    def critic(self, layers: int | None = None) -> RewardModel:
        """A value model of its own."""
        config = with_layers(self.configs["critic"], layers or self.layers["critic"])
        peft = self.critic_adapter()
        dtype = torch.float32 if peft.peft is None else self._dtype(trained=True)
        made = classifier(config, dtype, self.conditions.attention)
        return RewardModel(self._adapted(made, "SEQ_CLS", peft))

    def critic_adapter(self) -> PeftArguments:
        """What of a separate value model is trained (as `rlhf-hw ppo` settles it)."""
        ppo, peft = self.run.stage, self.run.peft
        if ppo.critic_lora_rank == 0:
            return replace(peft, full_finetune=True)
        if ppo.critic_lora_rank is not None:
            peft = replace(peft, full_finetune=False, peft="lora", lora_rank=ppo.critic_lora_rank)
        if ppo.critic_lora_target_modules is not None:
            peft = replace(peft, lora_target_modules=ppo.critic_lora_target_modules, lora_all_linear=False)
        return peft

    def actor_critic(self, layers: Mapping[str, int]) -> tuple[ActorCritic, dict[str, nn.Module]]:
        """(the roles of PPO together, role → the model that holds its layers)."""
        policy = self.policy(layers["policy"])
        critic = self.critic(layers["critic"]) if "critic" in layers else None
        reference = self.reference(layers["reference"]) if "reference" in layers else None
        with torch.device("meta"):
            together = ActorCritic(policy, critic, reference, self.run.stage.temperature)
        parts = {"policy": policy}
        if critic is not None:
            parts["critic"] = critic.model
        if reference is not None:
            parts["reference"] = reference
        return together, parts

    def _dtype(self, *, trained: bool) -> torch.dtype:
        """As `Session.load_options` has it: weights that train are fp32."""
        frozen = not trained or self.run.peft.peft is not None
        asked = _DTYPES.get(self.run.model.torch_dtype, self.conditions.frozen_dtype)
        wanted = self.conditions.autocast != "no" or "torch_dtype" in self.run.given
        return asked if frozen and wanted else torch.float32

    def _adapted(self, model: Any, task_type: str, peft: PeftArguments | None = None) -> Any:
        peft = peft or self.run.peft
        if peft.peft is None:
            return model
        checkpointing = bool(self.run.training.gradient_checkpointing)
        if self.run.model.quantization_bits() is not None:
            as_prepared_for_bits(model)
            if checkpointing:
                model.enable_input_require_grads()
        config = adapter_config(
            peft.peft,
            task_type=task_type,
            rank=peft.lora_rank,
            alpha=peft.lora_alpha,
            dropout=peft.lora_dropout,
            target_modules=peft.lora_target_modules,
            all_linear=peft.lora_all_linear,
            num_virtual_tokens=peft.num_virtual_tokens,
            ptun_hidden_size=peft.ptun_hidden_size,
            adapter_len=peft.adapter_len,
            adapter_layers=peft.adapter_layers,
        )
        with torch.device("meta"):
            return attach_adapter(model, config, gradient_checkpointing=checkpointing)

    # Bytes
    def weights(self, role: str) -> Weights:
        """What the weights of `role` take, all layers of it."""
        makers = {
            "policy": self.policy,
            "critic": self.critic,
            "reference": self.reference,
            "reward": self.reward,
        }
        made = makers[role]() if role != "trained reward" else None
        return self.weights_of(made, quantized=role in ("policy", "critic"))

    def weights_of(self, model: nn.Module | None, *, quantized: bool) -> Weights:
        """The same of a model that was made; `quantized`: whether `--qlora` and its like act on it."""
        assert model is not None
        parameters = list({id(weight): weight for weight in model.parameters()}.values())
        trained = [weight for weight in parameters if weight.requires_grad]
        frozen = sum(w.numel() * w.element_size() for w in parameters if not w.requires_grad)
        bits, largest = self.run.model.quantization_bits(), 0
        if quantized and bits is not None:
            inner = model.model if isinstance(model, RewardModel) else model
            saved, largest = quantized_bytes(inner.get_base_model(), bits, self.run.model.double_quant)
            frozen -= saved
        return Weights(
            frozen=frozen,
            trained=sum(weight.numel() * weight.element_size() for weight in trained),
            parameters=sum(weight.numel() for weight in trained),
            all_parameters=sum(weight.numel() for weight in parameters),
            largest=largest,
            matrices=tuple(tuple(weight.shape) for weight in trained),
        )
