"""A model that is only asked: where it runs, in which arithmetic, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from backends import Backend, resolve
from rlhf_hw.arguments.evaluation import AskingArguments
from rlhf_hw.models.load import (
    LoadOptions,
    check_model_path,
    check_reward_model,
    load_policy,
    load_reward_model,
    load_tokenizer,
)
from rlhf_hw.models.reward_model import RewardModel


@dataclass(frozen=True)
class Asked:
    """A language model in evaluation mode, on its device, with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    backend: Backend

    @property
    def context(self) -> int | None:
        """Longest text in tokens that the model has positions for; None where it sets no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)


@dataclass(frozen=True)
class Place:
    """Where models are asked: the device, and how they are loaded onto it."""

    backend: Backend
    dtype: Any  #: torch.dtype or "auto": as saved
    attention: str
    arguments: AskingArguments

    @classmethod
    def of(cls, arguments: AskingArguments) -> Place:
        """The place that the flags name.

        Raises:
            BackendError: the device is not to be had here.
        """
        backend = resolve(arguments.device)
        backend.prepare()
        precision = backend.precision(None, None)
        asked = arguments.torch_dtype
        dtype = precision.frozen_dtype if asked == "auto" else getattr(torch, asked)
        return cls(backend, dtype, backend.attention_implementation(precision).value, arguments)

    def options(self, flag: str) -> LoadOptions:
        """How to load the model that `flag` names."""
        return LoadOptions(
            flag=flag,
            cache_dir=self.arguments.cache_dir,
            token=self.arguments.hub_token(),
            trust_remote_code=self.arguments.trust_remote_code,
            dtype=self.dtype,
            attention=self.attention,
        )

    def eight_bit(self) -> dict[str, Any]:
        """What `--load_in_8bit` changes in `options`.

        Raises:
            BackendError: the device has no such kernels.
        """
        config = self.backend.quantization_config(8, False, "nf4", self.backend.precision(None, None))
        return {"quantization": config, "device_map": {"": self.backend.device}}

    def tokenizer(self, name: str, flag: str) -> Any:
        """The tokenizer of `name`."""
        return load_tokenizer(name, self.options(flag))

    def language_model(self, name: str, flag: str) -> Asked:
        """A language model (whole, or an adapter on its base), with its tokenizer."""
        check_model_path(name, flag)
        tokenizer = self.tokenizer(name, flag)
        return self.ready(name, load_policy(name, self.options(flag)), tokenizer)

    def ready(self, name: str, model: Any, tokenizer: Any) -> Asked:
        """A loaded model, put where it is asked. A quantized one is there already."""
        if not getattr(model, "is_quantized", False):
            model = model.to(self.backend.device)
        return Asked(name, model.eval().requires_grad_(False), tokenizer, self.backend)

    def reward_model(self, name: str, flag: str) -> tuple[RewardModel, Any]:
        """A reward model with its tokenizer.

        Raises:
            UserError: the directory holds no reward model.
        """
        check_model_path(name, flag)
        check_reward_model(name, flag)
        tokenizer = self.tokenizer(name, flag)
        model = load_reward_model(name, self.options(flag), tokenizer.pad_token_id)
        return model.eval().requires_grad_(False).to(self.backend.device), tokenizer
