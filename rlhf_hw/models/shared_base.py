"""Several roles on one set of base weights: LoRA adapters side by side, of which each role lets its own act."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_hw.models.adapter_files import ADAPTER_WEIGHTS, SCORE, AdapterFiles
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.wrapping import lora_layers

#: The policy's adapter, under the name that PEFT writes into a directory itself and not below it.
POLICY = "default"
#: The value function's. PEFT looks adapters up by parts of parameters' names, and "value" is part of query_key_value.
VALUE = "role_value"


class SharedBase:
    """A PEFT model with LoRA adapters by name, of which those act that a role names; the weights below are frozen.

    All LoRA layers look at one list of the acting adapters' names. So a role is taken by one assignment to that list:
    no module is visited, no `requires_grad` changed, and there is no moment at which half of the layers have switched.
    (PEFT's `set_adapter` and `disable_adapter` walk over all modules and change what trains.)

    Args:
        model: a LoRA model from PEFT, whose adapter `default` is the policy's.
        policy: adapters that act where no role was taken.
    """

    def __init__(self, model: Any, policy: Sequence[str] = (POLICY,)) -> None:
        self.model = model
        self._acting = list(policy)
        self._frozen: dict[str, str] = {}
        self._bind()

    def _bind(self) -> None:
        self.layers = lora_layers(self.model)
        for layer in self.layers:
            layer._active_adapter = self._acting

    @property
    def acting_now(self) -> tuple[str, ...]:
        """The adapters that act at this moment."""
        return tuple(self._acting)

    @contextmanager
    def acting(self, adapters: Sequence[str]) -> Iterator[None]:
        """Inside, these adapters act and no others; afterwards those from before, whatever happens."""
        before = tuple(self._acting)
        self._acting[:] = adapters
        try:
            yield
        finally:
            self._acting[:] = before

    def policy_is(self, adapters: Sequence[str]) -> None:
        """From now on these act where no role was taken."""
        self._acting[:] = adapters

    # Putting adapters on
    def add(
        self, name: str, config: Any, tensors: dict[str, torch.Tensor] | None = None, *, trained: bool
    ) -> None:
        """Put a further adapter on the base: fresh, or with `tensors` by their names in an adapter's file."""
        trains = {id(weight): weight.requires_grad for weight in self.model.parameters()}
        before = tuple(self._acting)
        with torch.random.fork_rng(devices=[], enabled=tensors is not None):
            self.model.add_adapter(name, config)
        for weight in self.model.parameters():
            weight.requires_grad_(trains.get(id(weight), trained))
        self._acting = list(before)
        self._bind()
        if tensors is not None:
            self.load(name, tensors)

    def add_frozen(self, directory: str, files: AdapterFiles | None = None) -> str:
        """Put the adapter of a directory on the base, once, never to be trained; its name."""
        key = str(Path(directory).resolve())
        if key not in self._frozen:
            name = f"role_frozen_{len(self._frozen)}"
            files = files or AdapterFiles.read(directory)
            self.add(name, on_layers(files), files.tensors, trained=False)
            self._frozen[key] = name
        return self._frozen[key]

    def state(self, name: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The tensors of an adapter by their names in a file; out of `state`, where the trainer gathered one."""
        whole = self.model.state_dict() if state is None else state
        return {key: whole[own] for key, own in self._names(name, whole).items()}

    @staticmethod
    def _names(name: str, state: dict[str, torch.Tensor]) -> dict[str, str]:
        """Name in an adapter's file → name in the model's `state`, of each tensor of an adapter."""
        mark = f".{name}."
        return {key.replace(mark, "."): key for key in state if ".lora_" in key and mark in key}

    def load(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write `tensors`, by their names in an adapter's file, into the adapter.

        Raises:
            RuntimeError: they are not this adapter's.
        """
        own = self._names(name, self.model.state_dict())
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise RuntimeError(f"adapter {name} and its file differ in {len(odd)} tensors, such as {odd[0]}")
        # through torch's own door, where those who share the weights out cut up what comes in
        self.model.load_state_dict({own[key]: tensor for key, tensor in tensors.items()}, strict=False)

    def parameters_of(self, name: str) -> Iterator[nn.Parameter]:
        """The weights of an adapter."""
        for key, weight in self.model.named_parameters():
            if ".lora_" in key and f".{name}." in key:
                yield weight

    def keep_roles_when_recomputing(self) -> None:
        """Let activations be recomputed by the adapters that acted in the forward pass.

        The backward pass comes when no role is taken any more.
        """
        for module in self.model.modules():
            plain = vars(module).get("_gradient_checkpointing_func")
            if plain is not None:
                module._gradient_checkpointing_func = self._in_its_role(plain)

    def _in_its_role(self, checkpoint: Any) -> Any:
        def checkpointed(function: Any, *args: Any, **kwargs: Any) -> Any:
            adapters = self.acting_now

            def in_role(*inputs: Any, **options: Any) -> Any:
                with self.acting(adapters):
                    return function(*inputs, **options)

            return checkpoint(in_role, *args, **kwargs)

        return checkpointed


def on_layers(files: AdapterFiles) -> Any:
    """The configuration of an adapter for the very layers that its file has matrices for, whatever model it stood on."""
    config = copy.deepcopy(files.config)
    config.target_modules = set(files.layers())
    config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", False
    return config


class AdapterRole(RewardModel):
    """A reward or value model that is adapters of a shared base, and a head of its own; read as a `RewardModel`.

    The base is not a submodule: only the head is.

    Args:
        base: whose adapters act.
        adapters: their names.
        score: the head, [1, H], in fp32.
        exported: PEFT's configuration of the last adapter, as it is written into a directory; None where it is not.
    """

    def __init__(
        self, base: SharedBase, adapters: Sequence[str], score: torch.Tensor, exported: Any = None
    ) -> None:
        nn.Module.__init__(self)
        self._base = (base,)  # in a tuple, so that torch does not register what is in it
        self.adapters = tuple(adapters)
        self.exported = exported
        self.score = nn.Linear(score.shape[1], 1, bias=False)
        with torch.no_grad():
            self.score.weight.copy_(score)

    @property
    def base(self) -> SharedBase:
        return self._base[0]

    @property
    def inner(self) -> Any:
        return self.base.model.get_base_model()

    @property
    def head(self) -> nn.Module:
        return self.score

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, right_padded: bool = False
    ) -> torch.Tensor:
        with self.base.acting(self.adapters):
            return super().hidden_states(input_ids, attention_mask, right_padded=right_padded)

    # What the trainer asks of a model
    def role_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.score.parameters()
        yield from self.base.parameters_of(self.adapters[-1])

    def checkpointed_models(self) -> list[nn.Module]:
        return []  # the base is the policy's, which asks for it

    def save_pretrained(
        self,
        directory: str | Path,
        state_dict: dict[str, torch.Tensor] | None = None,
        base_state: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write an ordinary PEFT directory of a classifier. `base_state`: of the base, where the trainer gathered it."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        score = self.score.weight if state_dict is None else state_dict["score.weight"]
        tensors = {**self.base.state(self.adapters[-1], base_state), SCORE: score}
        held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(held, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = copy.deepcopy(self.exported)
        config.inference_mode = True  # as PEFT writes it
        config.save_pretrained(str(target))

    def load_weights(self, directory: str | Path) -> None:
        """Read back, to the bit, what `save_pretrained` wrote."""
        tensors = load_file(Path(directory) / ADAPTER_WEIGHTS)
        self.score.load_state_dict({"weight": tensors.pop(SCORE)})
        self.base.load(self.adapters[-1], tensors)
