"""The models of a stage as its flags name them, at any depth: what trains, in which precision, what is shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from backends.base import DecodingOptions
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.ppo import PPOArguments, PPORun, critic_adapter
from rlhf_hw.arguments.reward import RewardPeftArguments
from rlhf_hw.arguments.run import Run
from rlhf_hw.estimate.fakes import as_prepared_for_bits, causal_model, classifier, quantized_bytes
from rlhf_hw.estimate.sizes import are_layers_alike, config_of_sizes, model_config, with_layers
from rlhf_hw.models.adapter_files import Chain, matrices_in
from rlhf_hw.models.adapters import attach_adapter, configured_adapter, for_layers_of
from rlhf_hw.models.base_sharing import Sharing, decide_sharing, take_over_adapter
from rlhf_hw.models.load import LoadOptions
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.models.shared_base import VALUE, AdapterRole, SharedBase

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
    compact: bool = (
        True  #: whether answers are drawn by the engine `compact` where nothing else was asked for
    )
    foreach: bool = False  #: whether an optimizer that is not fused takes all weights at once
    reserves: bool = True  #: whether memory counts that was asked for and never written
    leaves_padding_out: bool = False  #: whether decoders run on real tokens alone, where they can
    process: int = 0  #: bytes that a process takes whatever it trains
    prefill_tokens: int = DecodingOptions().prefill_tokens  #: of prompts that `compact` reads at a time

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
        self.sharing: Sharing | None = None  #: which roles of PPO share a base, as the run decides it
        if isinstance(run, PPORun):
            self.run = run = replace(run, peft=copy.copy(run.peft))
            self.sharing = decide_sharing(run)
            take_over_adapter(run, self.sharing)

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
        if ppo.separate_critic and "critic" not in self.shared:
            own = ppo.reward_model_name if ppo.init_value_with_reward else ppo.critic_model_name
            found["critic"] = self._config(own or name, "--critic_model_name")
        if self.has_reference:
            found["reference"] = self._config(ppo.reference_model_name or name, "--reference_model_name")
        if ppo.reward_model_name is not None and "reward" not in self.shared:
            found["reward"] = self._config(ppo.reward_model_name, "--reward_model_name")
        return found

    @property
    def has_reference(self) -> bool:
        """Whether the reference holds weights of its own."""
        return self.sharing is not None and "reference" in self.sharing.apart

    @property
    def shared(self) -> frozenset[str]:
        """Which of critic and reward are adapters on the policy's base."""
        found = () if self.sharing is None else self.sharing.shared
        return frozenset(role for role, name in (("critic", "value"), ("reward", "reward")) if name in found)

    @property
    def frozen_adapters(self) -> int:
        """Bytes of the adapters that stay, frozen, on a shared base: below a role's own, and that the reference began from."""
        sharing = self.sharing
        if sharing is None or self.run.peft.peft != "lora" or not sharing.shared:
            return 0
        below = list(sharing.policy.adapters[:-1] if sharing.continues else sharing.policy.adapters)
        for role, chain in sharing.shared.items():
            own = role == "reward" or (role == "value" and sharing.value_continues)
            below += chain.adapters[:-1] if own else chain.adapters
        return sum(4 * numbers for numbers in map(matrices_in, set(below)))

    def is_assumed(self, name: str) -> bool:
        """Whether a reward model was not named: it is then what `rlhf-hw reward` makes of the policy's base."""
        return name == self.run.model.model_name_or_path

    @property
    def layers(self) -> dict[str, int]:
        """Role → its number of layers."""
        return {role: int(config.num_hidden_layers) for role, config in self.configs.items()}

    @property
    def alike(self) -> bool:
        """Whether few layers tell of many; not where an adapter is on the last layers alone."""
        return self.run.peft.peft != "llama_adapter" and all(
            are_layers_alike(config) for config in self.configs.values()
        )

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
        peft = critic_adapter(self.run)
        dtype = torch.float32 if peft.peft is None else self._dtype(trained=True)
        made = classifier(config, dtype, self.conditions.attention)
        return RewardModel(self._adapted(made, "SEQ_CLS", peft))

    def actor_critic(self, layers: Mapping[str, int]) -> tuple[ActorCritic, dict[str, nn.Module]]:
        """(the roles of PPO together, role → the model that holds its layers)."""
        policy = self.policy(layers["policy"])
        base, critic = None, None
        if "critic" in self.shared:
            base, critic = self._critic_on(policy)
        elif "critic" in layers:
            critic = self.critic(layers["critic"])
        reference = self.reference(layers["reference"]) if "reference" in layers else None
        with torch.device("meta"):
            together = ActorCritic(policy, critic, reference, self.run.stage.temperature, False, base)
        parts = {"policy": policy}
        if "critic" in layers and critic is not None:
            parts["critic"] = critic.inner
        if reference is not None:
            parts["reference"] = reference
        return together, parts

    def _critic_on(self, policy: Any) -> tuple[SharedBase, AdapterRole]:
        """A value function that is an adapter of the policy's base."""
        base = SharedBase(policy)
        with torch.device("meta"):
            config = for_layers_of(policy, configured_adapter(critic_adapter(self.run), "CAUSAL_LM"))
            base.add(VALUE, config, trained=True)
            return base, AdapterRole(base, [VALUE], torch.zeros(1, _width(policy)))

    def reward_on(self, policy: Any) -> AdapterRole:
        """A reward model that is an adapter of the policy's base."""
        from peft import PeftConfig

        name = self.run.stage.reward_model_name
        base = SharedBase(policy)
        adapters = Chain.of(name).adapters
        if self.is_assumed(name) or not adapters:
            config = configured_adapter(RewardPeftArguments(), "CAUSAL_LM")
        else:
            config = PeftConfig.from_pretrained(adapters[-1])
            config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
        with torch.device("meta"):
            base.add("reward", for_layers_of(policy, config), trained=False)
            role = AdapterRole(base, ["reward"], torch.zeros(1, _width(policy)))
        return role.requires_grad_(False)

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
        config = configured_adapter(peft, task_type)
        with torch.device("meta"):
            return attach_adapter(model, config, gradient_checkpointing=checkpointing)

    # Bytes
    def weights(self, role: str) -> Weights:
        """What the weights of `role` take, all layers of it; of one that shares the policy's base, what it adds."""
        if role == "critic" and "critic" in self.shared:
            _, critic = self._critic_on(self.policy())
            return _of_parameters(list(critic.role_parameters()))
        if role == "reward" and "reward" in self.shared:
            return _of_parameters(list(self.reward_on(self.policy()).role_parameters()))
        makers = {
            "policy": self.policy,
            "critic": self.critic,
            "reference": self.reference,
            "reward": self.reward,
        }
        return self.weights_of(makers[role](), quantized=role in ("policy", "critic"))

    def weights_of(self, model: nn.Module, *, quantized: bool) -> Weights:
        """The same of a model that was made; `quantized`: whether `--qlora` and its like act on it."""
        found = _of_parameters(list(model.parameters()))
        bits = self.run.model.quantization_bits()
        if not quantized or bits is None:
            return found
        inner = model.model if isinstance(model, RewardModel) else model
        saved, largest = quantized_bytes(inner.get_base_model(), bits, self.run.model.double_quant)
        return replace(found, frozen=found.frozen - saved, largest=largest)


def _of_parameters(weights: list[nn.Parameter]) -> Weights:
    parameters = list({id(weight): weight for weight in weights}.values())
    trained = [weight for weight in parameters if weight.requires_grad]
    return Weights(
        frozen=sum(w.numel() * w.element_size() for w in parameters if not w.requires_grad),
        trained=sum(weight.numel() * weight.element_size() for weight in trained),
        parameters=sum(weight.numel() for weight in trained),
        all_parameters=sum(weight.numel() for weight in parameters),
        matrices=tuple(tuple(weight.shape) for weight in trained),
    )


def _width(policy: Any) -> int:
    return int(policy.get_output_embeddings().weight.shape[1])
