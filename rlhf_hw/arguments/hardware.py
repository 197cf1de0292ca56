"""The flags about devices. They parse on every machine; those about Gaudi act on HPU only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from transformers.hf_argparser import HfArg

from backends.hpu import HPUSettings
from backends.hpu_generation import CACHE_SETTINGS, HPUGeneration
from backends.hpu_graphs import HPUGraphSettings

_HPU = "HPU only: "
#: What is about rollouts, and so about PPO alone.
ROLLOUT_FLAGS = frozenset({*CACHE_SETTINGS, "ignore_eos"})


def without_rollouts(given: Iterable[str]) -> list[str]:
    """A line on flags about rollouts, for stages that have none."""
    found = sorted(ROLLOUT_FLAGS & set(given))
    names = ", ".join(f"--{name}" for name in found)
    return [f"{names}: no effect in this stage; only PPO has rollouts to act in"] if found else []


@dataclass(kw_only=True)
class HardwareArguments:
    """The device, and optimum-habana's settings for a Gaudi under their own names."""

    _argument_group_name = "Hardware (flags marked HPU have no effect on other devices)"

    device: Literal["auto", "cpu", "cuda", "hpu", "habana"] = HfArg(
        default="auto", help="Where to train. auto: an accelerator if there is one. habana means hpu."
    )
    use_habana: bool = HfArg(default=False, help="The same as --device hpu.")
    hpu_runtime: Literal["auto", "optimum", "native"] = HfArg(
        default="auto",
        help=_HPU
        + "optimum-habana's GaudiTrainer, or the stock Trainer. auto: optimum-habana where it is installed.",
    )
    use_lazy_mode: bool = HfArg(
        default=True, help=_HPU + "collect operations into graphs instead of running each at once."
    )
    gaudi_config_name: str | None = HfArg(default=None, help=_HPU + "a Gaudi configuration, by name or path.")
    use_hpu_graphs: bool = HfArg(default=False, help=_HPU + "older name of --use_hpu_graphs_for_inference.")
    use_hpu_graphs_for_inference: bool = HfArg(
        default=False,
        help=_HPU
        + "record scores, evaluations and (in optimum-habana) rollouts once for each shape, and replay them (lazy mode "
        "only).",
    )
    use_hpu_graphs_for_training: bool = HfArg(
        default=False,
        help=_HPU + "record and replay forward and backward passes (lazy mode, no --gradient_checkpointing).",
    )
    max_hpu_graphs: int | None = HfArg(
        default=None,
        help=_HPU + "keep at most so many graphs of a model in one role; further shapes run without.",
    )
    disable_tensor_cache_hpu_graphs: bool = HfArg(
        default=False, help=_HPU + "keep no tensors in the graphs of passes without gradients (saves memory)."
    )
    reuse_cache: bool = HfArg(
        default=False,
        help=_HPU + "rollouts of optimum-habana keep one cache of keys and values and write into it.",
    )
    bucket_size: int | None = HfArg(
        default=None,
        help=_HPU + "rollouts of optimum-habana lengthen their tensors by so many tokens at a time.",
    )
    bucket_internal: bool = HfArg(
        default=False, help=_HPU + "buckets of the cache inside attention alone; with --bucket_size."
    )
    use_compiled_autograd: bool = HfArg(default=False, help=_HPU + "compile the backward pass too.")
    compile_dynamic: bool | None = HfArg(
        default=None, help=_HPU + "torch.compile with dynamic shapes: true, false, or left to torch."
    )
    compile_from_sec_iteration: bool = HfArg(default=False, help=_HPU + "compile from the second step on.")
    use_regional_compilation: bool = HfArg(
        default=False, help=_HPU + "compile each layer instead of the whole."
    )
    inline_inbuilt_nn_modules: bool | None = HfArg(
        default=None, help=_HPU + "torch.compile's option of that name."
    )
    allow_unspec_int_on_nn_module: bool | None = HfArg(
        default=None, help=_HPU + "torch.compile's option of that name."
    )
    cache_size_limit: int | None = HfArg(default=None, help=_HPU + "torch.compile's limit of recompilations.")
    use_zero3_leaf_promotion: bool = HfArg(default=False, help=_HPU + "promote leaf modules under ZeRO-3.")
    distribution_strategy: Literal["ddp", "fast_ddp"] = HfArg(
        default="ddp",
        help=_HPU + "how gradients are averaged: DistributedDataParallel, or one all-reduce a step.",
    )
    context_parallel_size: int = HfArg(default=1, help=_HPU + "ranks that share one sequence.")
    throughput_warmup_steps: int = HfArg(default=0, help=_HPU + "first steps left out of the throughput.")
    adjust_throughput: bool = HfArg(
        default=False, help=_HPU + "leave the time of logging, evaluating and saving out of the throughput."
    )
    pipelining_fwd_bwd: bool = HfArg(
        default=False,
        help=_HPU + "start the device on the forward pass while the host builds the backward pass.",
    )
    non_blocking_data_copy: bool = HfArg(default=False, help=_HPU + "copy batches without waiting.")
    ignore_eos: bool = HfArg(
        default=True,
        help=_HPU
        + "rollouts run to their full length and are cut at EOS. False: they end once every answer has.",
    )
    profiling_warmup_steps: int = HfArg(default=0, help=_HPU + "training steps before profiling starts.")
    profiling_steps: int = HfArg(default=0, help=_HPU + "training steps to profile.")
    profiling_warmup_steps_eval: int = HfArg(
        default=0, help=_HPU + "evaluation steps before profiling starts."
    )
    profiling_steps_eval: int = HfArg(default=0, help=_HPU + "evaluation steps to profile.")
    profiling_record_shapes: bool = HfArg(default=True, help=_HPU + "record shapes in the profile.")
    profiling_with_stack: bool = HfArg(default=False, help=_HPU + "record source lines in the profile.")
    sdp_on_bf16: bool = HfArg(default=False, help=_HPU + "reduced precision in the plain attention kernel.")
    fp8: bool = HfArg(default=False, help=_HPU + "train in 8-bit floating point.")
    minimize_memory: bool = HfArg(default=False, help=_HPU + "save memory in fp8 training.")
    flash_attention_recompute: bool = HfArg(
        default=False, help=_HPU + "recompute attention in the backward pass."
    )
    flash_attention_fast_softmax: bool = HfArg(default=False, help=_HPU + "fast softmax in fused attention.")
    flash_attention_causal_mask: bool = HfArg(default=False, help=_HPU + "fused attention's own causal mask.")
    flash_attention_fp8: bool = HfArg(default=False, help=_HPU + "fused attention in 8-bit floating point.")

    def hpu_settings(self, given: frozenset[str], said: Mapping[str, Any]) -> HPUSettings:
        """What was said about a Gaudi. `given`: names of the settings the user gave; `said`: the training flags."""
        return HPUSettings(
            runtime=self.hpu_runtime,
            lazy_mode=self.use_lazy_mode if "use_lazy_mode" in given else None,
            torch_compile=bool(said.get("torch_compile")),
            gradient_checkpointing=bool(said.get("gradient_checkpointing")),
            gaudi_config_name=self.gaudi_config_name,
            graphs=HPUGraphSettings(
                inference=self.use_hpu_graphs or self.use_hpu_graphs_for_inference,
                training=self.use_hpu_graphs_for_training,
                most=self.max_hpu_graphs,
                disable_tensor_cache=self.disable_tensor_cache_hpu_graphs,
            ),
            generation=HPUGeneration(
                ignore_eos=self.ignore_eos,
                reuse_cache=self.reuse_cache,
                bucket_size=self.bucket_size,
                bucket_internal=self.bucket_internal,
            ),
        )

    def training_arguments(self, given: frozenset[str]) -> dict[str, Any]:
        """The settings given here under the names of optimum-habana's training arguments."""
        ours = {"device", "hpu_runtime", "use_habana", "use_lazy_mode", "gaudi_config_name"}
        names = {field.name for field in fields(self)} - ours
        return {name: getattr(self, name) for name in sorted(names & given)}

    def __post_init__(self) -> None:
        if self.device == "habana":
            self.device = "hpu"
        if self.use_habana and self.device == "auto":
            self.device = "hpu"
