"""Runs the commands of the three stages on one device, and keeps every step's loss and gradient norm.

    python tests/hpu/parity_runs.py WORK DEVICE CASE…

In a process of its own: optimum-habana changes transformers for good, and the mode of a Gaudi is settled once. WORK holds
what `tiny_materials.make` wrote; WORK/DEVICE/CASE.json is written, and CASE.pt with the trained weights (under
WORK/DEVICE-2 in each of two processes). Dropout is off: its masks come from the device's own random numbers.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[place]) for place in (1, 2)]

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
STEPS = 20
DEVICES = {
    "cpu": "--device cpu",
    "cuda": "--device cuda",
    "hpu-optimum-lazy": "--device hpu --hpu_runtime optimum --use_lazy_mode True",
    "hpu-optimum-eager": "--device hpu --hpu_runtime optimum --use_lazy_mode False",
    "hpu-native-eager": "--device hpu --hpu_runtime native --use_lazy_mode False",
    "hpu-native-lazy": "--device hpu --hpu_runtime native --use_lazy_mode True",
}
#: SGD, because Adam divides by each gradient's own size: where that is rounding alone, the step is rounding alone.
SGD = " --optim sgd --learning_rate 0.05"
ADAM = " --learning_rate 1e-3"
#: optimum-habana trains with its fused AdamW, whatever --optim says, unless its configuration says otherwise. Which adds
#: epsilon before the bias correction: another optimizer than torch's, if only just.
UNFUSED = " --gaudi_config_name {work}/unfused"
EVERY = (
    "--overwrite_output_dir --do_train --do_eval --report_to none --logging_steps 1 --seed 3 --lora_dropout 0 "
    "--tokenizer_name {work}/llama --lr_scheduler_type constant --train_file {work}/train.jsonl --validation_file {work}/eval.jsonl"
)
#: a device that pads would draw its batches otherwise than one that does not
AT_RANDOM = "--group_by_length False"
STAGES = {
    "sft": f"{AT_RANDOM} --model_name_or_path {{work}}/{{model}} --max_seq_length 48 --max_steps {STEPS} --save_strategy steps "
    "--save_steps 10 --per_device_train_batch_size 4 --per_device_eval_batch_size 4",
    "reward": f"{AT_RANDOM} --model_name_or_path {{work}}/{{model}} --max_length 48 --max_steps {STEPS} --save_strategy steps "
    "--save_steps 10 --per_device_train_batch_size 4 --per_device_eval_batch_size 4",
    # five updates of four optimizer steps
    "ppo": "--model_name {work}/{model} --reward_model_name {work}/reward --steps 40 --batch_size 8 --mini_batch_size 4 "
    "--ppo_epochs 2 --gradient_accumulation_steps 1 --output_max_length 8 --max_prompt_length 16 --save_freq 2 "
    "--init_kl_coef 0.05 --per_device_eval_batch_size 4",
}
#: As many rows a step in two processes as in one, which takes them in two micro-batches.
ACCUMULATED = {
    "sft": f"--per_device_train_batch_size 2 --gradient_accumulation_steps {2 // WORLD}",
    "reward": f"--per_device_train_batch_size 2 --gradient_accumulation_steps {2 // WORLD}",
    # one step an epoch: processes shuffle their own answers
    "ppo": f"--steps 80 --batch_size {8 // WORLD} --mini_batch_size 4 --gradient_accumulation_steps {2 // WORLD}",
}
#: policy, reference, value and reward as adapters of one base
SHARED = (
    "--model_name {work}/sft --reward_model_name {work}/scores --init_value_with_reward --share_backbone true"
)
VARIANTS = {
    "full": "--full_finetune --bf16 False",
    "lora": "--peft lora --bf16 False",
    "checkpointing": "--full_finetune --gradient_checkpointing --bf16 False",
    "adamw": "--full_finetune --bf16 False",
    "fused": "--full_finetune --bf16 False",
    "bf16": "--full_finetune --bf16 True",
    "accumulated": "--full_finetune --bf16 False {accumulated}",
    "graphs": "--peft lora --bf16 False --use_hpu_graphs_for_inference --use_hpu_graphs_for_training",
    "cached": "--peft lora --bf16 False --use_hpu_graphs_for_inference --reuse_cache --bucket_size 8 --bucket_internal "
    "--ignore_eos False",
    "resumed": "--full_finetune --bf16 False --resume_from_checkpoint {checkpoint}",
    "shared": f"--peft lora --bf16 False {SHARED}",
    "sharedresumed": f"--peft lora --bf16 False {SHARED} --resume_from_checkpoint {{checkpoint}}",
}
MODELS = ("gpt2", "opt", "qwen2")
CASES = tuple(
    f"{stage}-{variant}"
    for stage in STAGES
    for variant in VARIANTS
    if stage == "ppo" or not variant.startswith("shared")
) + tuple(f"sft-{model}" for model in MODELS)
CHECKPOINT = {"sft": 10, "reward": 10, "ppo": 8}


def command_line(case: str, work: Path, device: str) -> list[str]:
    """The words after `rlhf-hw STAGE` for one case."""
    stage, variant = case.split("-")
    model = variant if variant in MODELS else "llama"
    hardware = DEVICES[device] + (ADAM if variant in ("adamw", "fused") else SGD)
    if "optimum" in device and variant != "fused":
        hardware += UNFUSED
    words = f"{hardware} {EVERY} {STAGES[stage]} {VARIANTS['full' if variant in MODELS else variant]}"
    output = work / name_of(device) / case
    stopped = "shared" if variant.startswith("shared") else "full"
    checkpoint = work / name_of(device) / f"{stage}-{stopped}" / f"checkpoint-{CHECKPOINT[stage]}"
    filled = words.format(work=work, model=model, accumulated=ACCUMULATED[stage], checkpoint=checkpoint)
    return [*filled.split(), "--output_dir", str(output)]


def name_of(device: str) -> str:
    """What this process's results are called."""
    return device if WORLD == 1 else f"{device}-{WORLD}"


def recorded(stage: type, found: dict[str, Any]) -> type:
    """`stage` (a mixin), which also writes what happens in each step into `found`.

    Losses are the sums over a step's micro-batches, their mean over the processes; gradient norms those before clipping.
    """
    import torch
    from transformers import TrainerCallback

    class AtEachStep(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            loss = torch.tensor(self.trainer.step_loss, device=args.device)
            loss = float(self.trainer.accelerator.reduce(loss, reduction="mean"))
            norm = self.trainer.step_norm
            found["steps"].append({"step": state.global_step, "loss": loss, "gradient_norm": norm})
            self.trainer.step_loss = 0.0

        def on_train_end(self, args: Any, state: Any, *_: Any, model: Any = None, **kwargs: Any) -> None:
            found["weights"] = {
                name: parameter.detach().cpu().clone()
                for name, parameter in self.trainer.accelerator.unwrap_model(model).named_parameters()
                if parameter.requires_grad
            }

    class Recorded(stage):  # type: ignore[misc, valid-type]
        step_loss, step_norm = 0.0, 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(AtEachStep(self))

        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(model, *args, **kwargs)
            self.step_loss += float(loss)
            gradients = [p.grad.detach().cpu().double() for p in model.parameters() if p.grad is not None]
            self.step_norm = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
            return loss

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = super().evaluate(*args, **kwargs)
            found["evaluation"] = {
                name: value
                for name, value in metrics.items()
                if name.startswith("eval_") and not name.endswith(("runtime", "per_second", "_time"))
            }
            return metrics

    Recorded.__name__ = stage.__name__
    return Recorded


def run(case: str, work: Path, device: str) -> None:
    """One command, from its flags to its files, and what was recorded of it.

    Raises:
        SystemExit: the command failed.
    """
    import torch
    from accelerate.state import AcceleratorState, GradientState

    from rlhf_hw.cli import ppo, reward, sft

    stage, directory = case.split("-")[0], work / name_of(device)
    module, mixin = {"sft": (sft, "SFTMixin"), "reward": (reward, "RewardMixin"), "ppo": (ppo, "PPOMixin")}[
        stage
    ]
    found: dict[str, Any] = {"case": case, "device": device, "steps": []}
    environment, plain = dict(os.environ), getattr(module, mixin)
    setattr(module, mixin, recorded(plain, found))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    start = time.perf_counter()
    try:
        status = module.main(command_line(case, work, device))
    finally:
        setattr(module, mixin, plain)
        os.environ.clear()
        os.environ.update(environment)
    if status != 0:
        raise SystemExit(f"{case} on {device}: exit status {status}")
    found["seconds"] = round(time.perf_counter() - start, 2)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    weights = found.pop("weights")
    found["digest"] = digest(weights)
    samples = directory / case / "samples.jsonl"
    if stage == "ppo":
        found["answers"] = [json.loads(line)["response"] for line in samples.read_text().splitlines()]
    torch.save(weights, directory / f"{case}.pt")
    (directory / f"{case}.json").write_text(json.dumps(found, indent=1) + "\n")


def digest(weights: dict[str, Any]) -> str:
    """Names and bytes of all weights."""
    import torch

    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def main() -> int:
    """Every case in turn."""
    work, device, *cases = sys.argv[1:]
    from rlhf_hw.hpu_environment import set_lazy_mode

    set_lazy_mode(DEVICES[device].split(), os.environ)

    import datasets
    import torch

    import rlhf_hw.cli.entry as entry
    import rlhf_hw.cli.ppo as ppo
    import rlhf_hw.report.report as report

    gc.freeze()  # each run ends with a collection, which need not look through every imported module
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = Path(work) / "cache" / name_of(device)
    report.draw_plots = lambda rows, directory, name: []  # four fifths of the time of runs as short as these
    ppo.SAMPLES_KEPT = sys.maxsize  # every answer, to be compared
    leave, entry.leave_process_group = entry.leave_process_group, lambda: None  # one group serves all cases
    for case in cases:
        run(case, Path(work), device)
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
