"""Intel Gaudi, in either of two runtimes behind one interface.

`optimum`: optimum-habana's GaudiTrainer, with its fused optimizer and its generation for static shapes. `native`:
the stock Trainer of a transformers that drives `hpu` devices by itself. Neither library is imported before a stage
has asked for this backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch

from backends.base import (
    Availability,
    Backend,
    BackendError,
    Choice,
    DecodingOptions,
    GenerationOptions,
    MemoryStatistics,
    Precision,
    local_rank,
)
from backends.hpu_generation import CACHE_SETTINGS, HPUGeneration, generating
from backends.hpu_graphs import HPUGraphSettings, replay_passes
from backends.optimum_habana import adapt_transformers, optimum_habana
from backends.shapes import RolloutShapes, ShapePolicy, StaticBuckets, choose_buckets, round_up

#: Read once, when the Gaudi libraries load: 1 collects operations into graphs (lazy), 0 runs each at once (eager).
LAZY_MODE_VARIABLE = "PT_HPU_LAZY_MODE"
#: How many sequence lengths a run may have. Each is compiled once, before the first step.
MOST_BUCKETS = 4
#: Lengths are multiples of this many tokens: SFT's of the original scripts on Gaudi.
LENGTH_MULTIPLE = 8
EMULATOR = "habana_torch_plugin_emulator"
GRAPHS_FOR_INFERENCE = ("use_hpu_graphs", "use_hpu_graphs_for_inference")
GRAPHS_FOR_TRAINING = "use_hpu_graphs_for_training"
TRANSFORMER_ENGINE = "habana_frameworks.torch.hpex.experimental.transformer_engine"


@dataclass(frozen=True)
class HPUSettings:
    """What a user may choose about a Gaudi; None and "auto" mean: choose for me."""

    runtime: Literal["auto", "optimum", "native"] = "auto"
    lazy_mode: bool | None = None
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    gaudi_config_name: str | None = None
    graphs: HPUGraphSettings = field(default_factory=HPUGraphSettings)
    generation: HPUGeneration = field(default_factory=HPUGeneration)


class HPUBackend(Backend):
    name = "hpu"
    device_type = "hpu"
    collective_backend = "hccl"
    launchers = ("mpirun", "torchrun", "deepspeed")

    def __init__(self, settings: HPUSettings | None = None) -> None:
        self.settings = settings or HPUSettings()

    # Is it there
    @classmethod
    def available(cls) -> Availability:
        if find_spec("habana_frameworks") is None:
            return Availability(
                False,
                "the Gaudi software (habana_frameworks) is not installed; use a Gaudi container image, or install "
                "hpu_emulator to try things without a Gaudi",
            )
        import habana_frameworks.torch.hpu as hpu

        if not hpu.is_available():
            return Availability(
                False,
                "the Gaudi software is installed but sees no Gaudi; check hl-smi and HABANA_VISIBLE_DEVICES",
            )
        emulated = " (emulated on CPU memory)" if cls.emulated() else ""
        return Availability(True, f"{hpu.device_count()} × {hpu.get_device_name()}{emulated}")

    @staticmethod
    def emulated() -> bool:
        """Whether the device is this project's emulator and no Gaudi."""
        return find_spec(EMULATOR) is not None

    @classmethod
    def device_count(cls) -> int:
        import habana_frameworks.torch.hpu as hpu

        return int(hpu.device_count())

    @property
    def device(self) -> torch.device:
        return torch.device("hpu", local_rank() % max(1, self.device_count()))

    # Which runtime, which mode
    @property
    def runtime(self) -> Choice:
        """ "optimum" or "native", and why.

        Raises:
            BackendError: the one asked for is not installed.
        """
        installed = find_spec("optimum") is not None and find_spec("optimum.habana") is not None
        asked = self.settings.runtime
        if asked == "optimum" and not installed:
            raise BackendError(
                "--hpu_runtime optimum: optimum-habana is not installed; pip install -r requirements-hpu.txt, or use "
                "--hpu_runtime native"
            )
        if asked != "auto":
            return Choice(asked, "as asked")
        if installed:
            return Choice("optimum", "optimum-habana is installed")
        return Choice("native", "optimum-habana is not installed")

    @property
    def is_optimum(self) -> bool:
        return self.runtime.value == "optimum"

    @property
    def lazy_mode(self) -> Choice:
        """ "lazy", "eager" or "compile", and why.

        Raises:
            BackendError: the flag contradicts the variable, which was read when the libraries loaded.
        """
        said, variable = self.settings.lazy_mode, os.environ.get(LAZY_MODE_VARIABLE)
        if self.settings.torch_compile and (said or variable == "1"):
            raise BackendError(
                f"--torch_compile: needs eager mode; give --use_lazy_mode False and unset {LAZY_MODE_VARIABLE}"
            )
        if variable is not None and said is not None and said != (variable == "1"):
            raise BackendError(
                f"--use_lazy_mode {said}: the environment has {LAZY_MODE_VARIABLE}={variable}; unset it or drop the flag"
            )
        if self.settings.torch_compile:
            return Choice("compile", "--torch_compile")
        if said is not None:
            return Choice("lazy" if said else "eager", "as asked")
        if variable is not None:
            return Choice("lazy" if variable == "1" else "eager", f"{LAZY_MODE_VARIABLE}={variable}")
        if self.is_optimum:
            return Choice("lazy", "optimum-habana's default")
        return Choice("eager", "lazy mode is the optimum runtime's")

    def prepare(self) -> None:
        if self.is_optimum:
            adapt_transformers()  # its generation takes the arguments below

    # What runs on it
    @property
    def trainer_class(self) -> type:
        if not self.is_optimum:
            return super().trainer_class
        return optimum_habana().GaudiTrainer

    @property
    def training_arguments_class(self) -> type:
        if not self.is_optimum:
            return super().training_arguments_class
        return optimum_habana().GaudiTrainingArguments

    def own_settings(self) -> frozenset[str]:
        """HPU graphs are made here: optimum-habana would wrap whole models, with the hooks in them. The rest is about
        rollouts; the stock `generate` knows nothing of caches that optimum-habana's models keep.
        """
        settings = {*GRAPHS_FOR_INFERENCE, GRAPHS_FOR_TRAINING, "max_hpu_graphs", "ignore_eos"}
        settings.add("disable_tensor_cache_hpu_graphs")
        return frozenset(settings | (CACHE_SETTINGS if self.is_optimum else set()))

    def training_argument_overrides(self) -> dict[str, Any]:
        if not self.is_optimum:
            several = int(os.environ.get("WORLD_SIZE", "1")) > 1
            return {"dataloader_pin_memory": False, **({"ddp_backend": "hccl"} if several else {})}
        return {"use_habana": True, "use_lazy_mode": self.lazy_mode.value == "lazy"}

    def training_argument_defaults(self) -> dict[str, Any]:
        # Each of these would bring new graphs: a first log line late in the run, and an evaluation that joins its
        # batches on the device.
        defaults = super().training_argument_defaults()
        defaults |= {"logging_first_step": True, "eval_accumulation_steps": 1}
        if self.settings.torch_compile:
            defaults["torch_compile_backend"] = "hpu_backend"
        return defaults

    def refused_training_arguments(self) -> dict[str, str]:
        refused = super().refused_training_arguments()
        refused |= {
            "fp16": "a Gaudi has no fp16 training; use --bf16, its own format",
            "tf32": "tf32 is a format of NVIDIA's tensor cores, which a Gaudi has not; leave it out",
        }
        if self.lazy_mode.value != "lazy":
            reason = (
                f"HPU graphs exist in lazy mode only, and this is {self.lazy_mode.value} mode "
                f"({self.lazy_mode.reason}); give --use_lazy_mode True, or leave it out"
            )
            refused |= dict.fromkeys((*GRAPHS_FOR_INFERENCE, GRAPHS_FOR_TRAINING), reason)
        elif self.settings.gradient_checkpointing:
            refused[GRAPHS_FOR_TRAINING] = (
                "a replayed graph does not put back the random numbers with which --gradient_checkpointing computes a "
                "layer again; leave one of the two out"
            )
        if self.is_optimum:
            refused |= self.settings.generation.contradictions(by_graphs=self.settings.graphs.inference)
        if not _has_transformer_engine():
            refused |= dict.fromkeys(("fp8", "minimize_memory"), _NO_TRANSFORMER_ENGINE)
        return refused

    def notes(self) -> list[str]:
        runtime, mode = self.runtime, self.lazy_mode
        lines = [f"hpu: {runtime.value} runtime ({runtime.reason}), {mode.value} mode ({mode.reason})"]
        if self.emulated():
            lines.append("hpu: emulated on CPU memory; nothing here tells how fast a Gaudi is")
        graphs = self.settings.graphs
        if graphs.most is not None and not (graphs.inference or graphs.training):
            lines.append(
                f"--max_hpu_graphs: no effect; give --{GRAPHS_FOR_INFERENCE[1]} or --{GRAPHS_FOR_TRAINING} too"
            )
        if graphs.disable_tensor_cache and not graphs.inference:
            lines.append(
                f"--disable_tensor_cache_hpu_graphs: no effect; give --{GRAPHS_FOR_INFERENCE[1]} too"
            )
        return lines

    def trainer_arguments(self) -> dict[str, Any]:
        if not self.is_optimum:
            return {}
        config_class = optimum_habana().GaudiConfig
        if self.settings.gaudi_config_name is not None:
            return {"gaudi_config": config_class.from_pretrained(self.settings.gaudi_config_name)}
        return {"gaudi_config": config_class(use_fused_adam=True, use_fused_clip_norm=True)}

    def precision(self, bf16: bool | None, fp16: bool | None) -> Precision:
        if fp16:
            raise BackendError(f"--fp16: {self.refused_training_arguments()['fp16']}")
        if bf16 is False:
            return Precision("no", torch.float32, "fp32 as asked")
        return Precision("bf16", torch.bfloat16, "bf16: the matrix units' own format")

    def attention_implementation(self, precision: Precision) -> Choice:
        if self.is_optimum:
            return Choice("eager", "optimum-habana's; --attn_implementation gaudi_fused_sdpa fuses it")
        if self.lazy_mode.value == "lazy":
            # transformers leaves sdpa's mask out of a batch without padding, which is another graph
            return Choice("eager", "one graph for batches with and without padding")
        return Choice("sdpa", "torch's fused attention")

    def shape_policy(self, lengths: Sequence[int] = ()) -> ShapePolicy:
        if not lengths:
            return StaticBuckets((LENGTH_MULTIPLE,))
        return StaticBuckets(choose_buckets(lengths, MOST_BUCKETS, LENGTH_MULTIPLE))

    def rollout_shapes(self, prompt_lengths: Sequence[int], max_new_tokens: int) -> RolloutShapes:
        prompt = round_up(max(prompt_lengths), LENGTH_MULTIPLE)
        sequence = StaticBuckets((round_up(prompt + max_new_tokens, LENGTH_MULTIPLE),))
        return RolloutShapes(StaticBuckets((prompt,)), sequence, max_new_tokens)

    def generation_options(self, model: Any = None) -> GenerationOptions:
        wanted = self.settings.generation
        if not self.is_optimum:
            return GenerationOptions(ignore_eos=wanted.ignore_eos)
        lazy, graphs = self.lazy_mode.value == "lazy", self.settings.graphs
        if model is not None:
            wanted.check(model)
        arguments = {
            "lazy_mode": lazy,
            "hpu_graphs": lazy and graphs.inference,
            "ignore_eos": wanted.ignore_eos,
        }
        return GenerationOptions(
            config={"static_shapes": True, **wanted.config()},
            arguments=arguments,
            ignore_eos=wanted.ignore_eos,
            around=partial(generating, wanted, graphs if arguments["hpu_graphs"] else None),
        )

    def rollout_engine(self) -> Choice:
        return Choice("generate", "its shapes stay the same")

    def decoding_options(self, engine: str = "compact") -> DecodingOptions:
        raise BackendError(
            f"--rollout_engine {engine}: its shapes change with every token, and an HPU compiles a graph for each; use generate"
        )

    # Housekeeping
    def replay_passes(self, module: Any, state: Callable[[], Hashable], *, sharded: bool = False) -> None:
        graphs = self.settings.graphs
        if self.lazy_mode.value != "lazy" or not (graphs.inference or graphs.training):
            return
        if sharded:
            raise BackendError(
                "--use_hpu_graphs_for_inference, --use_hpu_graphs_for_training: a graph reads weights where they were when "
                "it was recorded, and DeepSpeed and FSDP move them; leave one of the two out"
            )
        attention = getattr(getattr(module, "config", None), "_attn_implementation", "eager")
        if not self.is_optimum and attention != "eager":
            # transformers asks then whether a mask hides anything, and runs other operators where it does not
            raise BackendError(
                f"--attn_implementation {attention}: what it runs depends on the mask, and an HPU graph would repeat what "
                "it ran first; use eager, or leave the graphs out"
            )
        replay_passes(module, state, graphs)

    def end_graph(self) -> None:
        if self.lazy_mode.value == "lazy":
            import habana_frameworks.torch.core as core

            core.mark_step()

    def seed_everything(self, seed: int) -> None:
        from transformers import set_seed

        set_seed(seed)
        if self.is_optimum:
            optimum_habana().utils.set_seed(seed)

    def forked_random_numbers(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[self.device.index], device_type="hpu")

    def synchronize(self) -> None:
        import habana_frameworks.torch.hpu as hpu

        hpu.synchronize()

    def memory_statistics(self) -> MemoryStatistics:
        import habana_frameworks.torch.hpu as hpu

        found = hpu.memory_stats(self.device)
        return MemoryStatistics(found["InUse"], found["MaxInUse"], found["Limit"])

    def reset_peak_memory(self) -> None:
        import habana_frameworks.torch.hpu as hpu

        hpu.reset_peak_memory_stats(self.device)

    def describe(self) -> dict[str, Any]:
        import habana_frameworks.torch.hpu as hpu

        return {
            "backend": self.name,
            "card": hpu.get_device_name(),
            "cards": self.device_count(),
            "emulated": self.emulated(),
            "memory_bytes": self.memory_statistics().limit,
            "runtime": f"{self.runtime.value} ({self.runtime.reason})",
            "mode": f"{self.lazy_mode.value} ({self.lazy_mode.reason})",
        }


_NO_TRANSFORMER_ENGINE = (
    "training in 8 bits needs Intel's transformer engine, which this Gaudi software has not (the emulator has none "
    "either); leave it out, bf16 is the default"
)


def _has_transformer_engine() -> bool:
    """Whether Intel's library for 8-bit training is part of the Gaudi software."""
    try:
        return find_spec(TRANSFORMER_ENGINE) is not None
    except ModuleNotFoundError:  # one of the packages above it
        return False
