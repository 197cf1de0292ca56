"""The questions that training code asks about hardware, and the records that answer them.

A new device is one more module with one more subclass of `Backend`. Stage code never asks *who* answered.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backends.shapes import RolloutShapes, ShapePolicy

if TYPE_CHECKING:
    import torch


class BackendError(Exception):
    """What was asked of the hardware cannot be had; the message says why and how to get it."""


@dataclass(frozen=True)
class Availability:
    """Whether a device can be used in this process, and why (not)."""

    ok: bool
    reason: str


@dataclass(frozen=True)
class Precision:
    """The arithmetic of a run.

    `autocast`: "bf16", "fp16" or "no", as accelerate spells it. `frozen_dtype`: dtype in which weights that are
    not trained are held. Trained weights stay in fp32: the optimizer's small steps vanish in bf16.
    """

    autocast: str
    frozen_dtype: torch.dtype
    reason: str


@dataclass(frozen=True)
class Choice:
    """An answer with its reason, so that a user can see why."""

    value: str
    reason: str


@dataclass(frozen=True)
class GenerationOptions:
    """How transformers' `generate` runs on a device: further fields of its config, and further arguments.

    `ignore_eos`: every answer runs to its full length, and is cut at its first end token afterwards. `around(model,
    state)`: what a call runs in; `state` tells apart calls that run other operators (adapters, shapes).
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ignore_eos: bool = False
    around: Callable[[Any, Hashable], AbstractContextManager[None]] = lambda _model, _state: nullcontext()


def forked_on_the_host() -> AbstractContextManager[None]:
    """Inside, random numbers are drawn without moving on the CPU's stream."""
    import torch

    return torch.random.fork_rng(devices=[])


@dataclass(frozen=True)
class DecodingOptions:
    """How a decode loop of our own runs on a device.

    `check_every`: steps between two looks at which answers have ended; a look waits for the device. `prefill_tokens`:
    about how many tokens of prompts run at a time: few, so that little is padding, and enough to fill the device.
    `attention_in_fp32`: whether that of a single token is faster so, also where the rest is bf16. `forked_random_numbers`:
    the backend's own.
    """

    check_every: int = 8
    prefill_tokens: int = 8192
    attention_in_fp32: bool = False
    forked_random_numbers: Callable[[], AbstractContextManager[None]] = forked_on_the_host


@dataclass(frozen=True)
class MemoryStatistics:
    """Bytes in use now, at most since the last reset, and in all."""

    in_use: int
    peak: int
    limit: int


class Backend(ABC):
    """One kind of hardware. Stateless: every answer is worked out when asked."""

    name: str
    device_type: str
    collective_backend: str
    #: launchers that can start several processes on it, the preferred one first
    launchers: tuple[str, ...]
    #: whether weights can be held in 4 and 8 bits
    quantizes = False
    #: whether torch's optimizers, where they are not fused, take all weights at once (and need scratch memory for all)
    optimizer_takes_all = True
    #: whether memory is taken when a program asks for it, and not when it first writes there
    memory_is_taken_when_asked_for = True
    #: whether the processes of a machine take from one memory, and have no card each
    memory_is_the_machines = False
    #: bytes that a process holds there whatever it trains
    taken_by_a_process = 0

    # Is it there
    @classmethod
    @abstractmethod
    def available(cls) -> Availability:
        """Whether this process can use the device."""

    @staticmethod
    def emulated() -> bool:
        """Whether another kind of hardware stands in for the device."""
        return False

    @classmethod
    @abstractmethod
    def device_count(cls) -> int:
        """Devices of this kind that this process can see."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of this process (its local rank's, where there are several)."""

    def prepare(self) -> None:
        """Ready the libraries for the device, before a model is loaded to be asked. A trainer's class does it itself."""
        return

    # What runs on it
    @property
    def trainer_class(self) -> type:
        """The `transformers.Trainer` that the stages extend."""
        from transformers import Trainer

        return Trainer

    @property
    def training_arguments_class(self) -> type:
        """The `transformers.TrainingArguments` that belongs to `trainer_class`."""
        from transformers import TrainingArguments

        return TrainingArguments

    def training_argument_overrides(self) -> dict[str, Any]:
        """Training arguments that follow from the device and that a user does not choose."""
        return {}

    def training_argument_defaults(self) -> dict[str, Any]:
        """Training arguments for where the user did not say."""
        # to look whether a loss is a number, the host would wait for the device after every micro-batch
        return {"logging_nan_inf_filter": False}

    def own_settings(self) -> frozenset[str]:
        """Settings that act here and are no training arguments."""
        return frozenset()

    def refused_training_arguments(self) -> dict[str, str]:
        """Training arguments that mean nothing here, each with the reason."""
        return {
            "use_liger_kernel": f"Liger's kernels need an NVIDIA GPU, not the {self.name} backend; leave it out"
        }

    def notes(self) -> list[str]:
        """Choices about the device that a user should see when a run starts."""
        return []

    def trainer_arguments(self) -> dict[str, Any]:
        """What `trainer_class` takes beyond `transformers.Trainer`'s arguments."""
        return {}

    @abstractmethod
    def precision(self, bf16: bool | None, fp16: bool | None) -> Precision:
        """Settle the precision. `None` means the user did not say.

        Raises:
            BackendError: the device has no such arithmetic.
        """

    @abstractmethod
    def attention_implementation(self, precision: Precision) -> Choice:
        """Name of the attention kernel for `from_pretrained(attn_implementation=…)`."""

    @abstractmethod
    def shape_policy(self, lengths: Sequence[int] = ()) -> ShapePolicy:
        """How batches are padded, given the lengths (tokens) of the examples in the data."""

    def rollout_shapes(self, prompt_lengths: Sequence[int], max_new_tokens: int) -> RolloutShapes:
        """The widths of PPO's rollouts, given the lengths (tokens) of all prompts and of the longest answer."""
        policy = self.shape_policy()
        return RolloutShapes(policy, policy)

    @property
    def leaves_padding_out(self) -> bool:
        """Whether batches run faster as their real tokens end to end, a new number of them each time."""
        return False

    @property
    def groups_by_length(self) -> bool:
        """Whether batches of rows of like length run faster: where every row is padded to a width of the batch's."""
        return not self.leaves_padding_out

    def generation_options(self, model: Any = None) -> GenerationOptions:
        """How `generate` runs here, of `model` where it is known.

        Raises:
            BackendError: the model cannot generate in the way that was asked for.
        """
        return GenerationOptions()

    def rollout_engine(self) -> Choice:
        """Which engine (`--rollout_engine`) draws PPO's answers where the user did not say."""
        return Choice("compact", "a cache made once, and ended answers leave the batch")

    def decoding_options(self, engine: str = "compact") -> DecodingOptions:
        """How an engine whose shapes change with every token (`compact`, `continuous`) runs here.

        Raises:
            BackendError: it cannot.
        """
        return DecodingOptions(forked_random_numbers=self.forked_random_numbers)

    def quantization_config(
        self, bits: int, double_quant: bool, quant_type: str, precision: Precision
    ) -> Any:
        """What `from_pretrained(quantization_config=…)` takes for weights of `bits` bits.

        Raises:
            BackendError: the device has no quantized kernels, or their library is not installed.
        """
        raise BackendError(
            f"--qlora, --load_in_{bits}bit: quantized weights need bitsandbytes, which runs on CUDA cards and CPUs and not "
            f"on the {self.name} backend; leave the flag out"
        )

    # Housekeeping
    def replay_passes(self, module: Any, state: Callable[[], Hashable], *, sharded: bool = False) -> None:
        """From now on `module`'s forward passes may be recorded once for each shape, and replayed: no Python in it runs
        again then. `state()` tells apart what Python decides inside. Nothing where there is no such thing.

        Raises:
            BackendError: it was asked for, and is not possible where weights are `sharded`.
        """
        return

    def end_graph(self) -> None:
        """Where operations are collected into graphs: this one is complete, run it. Nothing elsewhere."""
        return

    @abstractmethod
    def seed_everything(self, seed: int) -> None:
        """Seed Python, NumPy and torch, this device's generators included."""

    def forked_random_numbers(self) -> AbstractContextManager[None]:
        """Inside, random numbers are drawn without moving on torch's streams."""
        return forked_on_the_host()

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done what it was given (for honest timings)."""

    @abstractmethod
    def memory_statistics(self) -> MemoryStatistics:
        """Memory of this process's device."""

    @abstractmethod
    def reset_peak_memory(self) -> None:
        """Start a new measurement of the peak, where the device can."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for `rlhf-hw doctor` and the run directory: nothing that names a person or a host."""


def local_rank() -> int:
    """Rank of this process on its machine, as the launcher told it; 0 when started alone."""
    return int(os.environ.get("LOCAL_RANK", "0"))
