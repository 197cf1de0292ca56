"""What `rlhf-hw estimate` says against what is measured: peak memory of real runs of each stage, on random models.

    python benchmarks/estimate.py [--only PART_OF_A_NAME] [--device hpu]

Cases that were measured before are not measured again (`--work`).

Each case is two fresh processes of the same command: `rlhf-hw estimate STAGE …`, and the stage itself with its memory
measured. On a CPU that is the resident set (its high-water mark, put back at the start of each phase) over its level once
everything is imported; on a Gaudi or the emulator the device's own statistics. Models and data are made on the spot, rows
of the length that the flags allow. Writes a table (Markdown) and its numbers (JSON) to `--results`.

The C library keeps freed blocks in its heap, and counts them as the process's: measured is with MALLOC_MMAP_THRESHOLD_ at
64 KiB, so that larger blocks go back to the system when they are freed, and with one arena.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VOCABULARY = 8192
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
    },
    "opt": {
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "word_embed_proj_dim": 768,
    },
    "gpt2": {"n_embd": 768, "n_layer": 8, "n_head": 12},
}
SFT = "sft --max_steps 2 --max_seq_length 256 --train_on_inputs --per_device_train_batch_size 4"
REWARD = "reward --max_steps 2 --max_length 256 --do_eval False --per_device_train_batch_size 2"
PPO = (
    "ppo --steps 16 --batch_size 8 --mini_batch_size 2 --gradient_accumulation_steps 2 --ppo_epochs 1 "
    "--max_prompt_length 96 --output_max_length 64 --output_min_length 64"
)
FULL, LORA, BF16, FP32, AGAIN = (
    "--full_finetune",
    "--peft lora",
    "--bf16 True",
    "--bf16 False",
    "--gradient_checkpointing",
)
#: name → (model, flags)
CASES = {
    "SFT, Llama, full, fp32": ("llama", f"{SFT} {FULL} {FP32}"),
    "SFT, Llama, full, bf16": ("llama", f"{SFT} {FULL} {BF16}"),
    "SFT, Llama, full, bf16, checkpointing": ("llama", f"{SFT} {FULL} {BF16} {AGAIN}"),
    "SFT, Llama, full, fp32, 2 accumulated": (
        "llama",
        f"{SFT} {FULL} {FP32} --gradient_accumulation_steps 2",
    ),
    "SFT, Llama, LoRA, fp32": ("llama", f"{SFT} {LORA} {FP32}"),
    "SFT, Llama, LoRA, bf16": ("llama", f"{SFT} {LORA} {BF16}"),
    "SFT, Llama, LoRA, bf16, checkpointing": ("llama", f"{SFT} {LORA} {BF16} {AGAIN}"),
    "SFT, OPT, full, fp32": ("opt", f"{SFT} {FULL} {FP32}"),
    "SFT, GPT-2, full, bf16": ("gpt2", f"{SFT} {FULL} {BF16}"),
    "RM, Llama, full, fp32": ("llama", f"{REWARD} {FULL} {FP32}"),
    "RM, Llama, LoRA, bf16": ("llama", f"{REWARD} {LORA} {BF16}"),
    "RM, OPT, LoRA, bf16, checkpointing": ("opt", f"{REWARD} {LORA} {BF16} {AGAIN}"),
    "PPO, Llama, LoRA, shared, fp32": ("llama", f"{PPO} {LORA} {FP32}"),
    "PPO, Llama, LoRA, shared, bf16": ("llama", f"{PPO} {LORA} {BF16}"),
    "PPO, Llama, full, separate, bf16": ("llama", f"{PPO} {FULL} {BF16} --value_model separate"),
    "PPO, GPT-2, full, trunk, fp32, checkpointing": ("gpt2", f"{PPO} {FULL} {FP32} {AGAIN}"),
    "PPO, OPT, LoRA, separate, bf16, checkpointing": (
        "opt",
        f"{PPO} {LORA} {BF16} {AGAIN} --value_model separate",
    ),
}
MEASURED_WITH = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
#: a stage's phases → those of an estimate that happen within
WITHIN = {"optimise": ("update", "optimizer step")}


# One measured run, in a process of its own


class Memory:
    """Peak bytes since `start`, over what there was when this was made."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.level = self._resident("VmRSS") if device == "cpu" else 0
        self.found: dict[str, int] = {}

    @staticmethod
    def _resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def start(self) -> None:
        if self.device == "cpu":
            Path("/proc/self/clear_refs").write_text("5")
        else:
            self._backend().reset_peak_memory()

    def stop(self, phase: str) -> None:
        peak = self._resident("VmHWM") if self.device == "cpu" else self._backend().memory_statistics().peak
        self.found[phase] = max(self.found.get(phase, 0), peak - self.level)

    @staticmethod
    def _backend() -> Any:
        from backends.hpu import HPUBackend

        return HPUBackend()


class _Trained(Exception):
    """Training has ended."""


def measure(result: Path, device: str, words: Sequence[str]) -> int:
    """Run a stage, and write the peak of each of its phases from the second optimizer step (PPO: update) on."""
    from transformers import Trainer, TrainerCallback

    from rlhf_hw.cli import ppo, reward, sft
    from rlhf_hw.trainers import metrics

    stage, *flags = words
    module, mixin = {"sft": (sft, "SFTMixin"), "reward": (reward, "RewardMixin"), "ppo": (ppo, "PPOMixin")}[
        stage
    ]
    assert Trainer is not None
    memory = Memory(device)

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            memory.start()

        def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            if state.global_step > 1:
                memory.stop("optimise")

    class Watched(getattr(module, mixin)):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if stage != "ppo":
                self.add_callback(Watch())

        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train(*args, **kwargs)
            raise _Trained  # saving and statistics are not what is measured

    class WatchedTimer(metrics.PhaseTimer):
        updates = 0

        @contextmanager
        def phase(self, name: str) -> Iterator[None]:
            self.updates += name == "rollout"
            memory.start()
            with super().phase(name):
                yield
            if self.updates > 1:
                memory.stop(name)

        def open(self, name: str) -> None:
            if self._opened is None:
                memory.start()
            super().open(name)

        def close(self) -> None:
            if self._opened is not None and self.updates > 1:
                memory.stop(self._opened[0])
            super().close()

    setattr(module, mixin, Watched)
    if stage == "ppo":
        from rlhf_hw.trainers import ppo as trainer

        vars(trainer)["PhaseTimer"] = WatchedTimer
    try:
        return int(module.main(flags))
    except _Trained:
        result.write_text(json.dumps(memory.found))
        return 0


# All of them


def main() -> int:
    """Estimate and measure each case and write the table."""
    if sys.argv[1:2] == ["--measure"]:
        return measure(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--device", default="cpu", choices=("cpu", "hpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/estimate"), help="where the runs go")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="where the table goes"
    )
    arguments = parser.parse_args()
    make_materials(arguments.work)
    numbers = {}
    for name, (model, flags) in CASES.items():
        if arguments.only in name:
            numbers[name] = kept(arguments.work, arguments.device, name, model, flags)
            print(name, *_rows(name, numbers[name]), sep="\n  ", flush=True)
    write_results(arguments.results, arguments.device, numbers)
    return 0


def make_materials(work: Path) -> None:
    """Random models, each as a causal model and with one label, a tokenizer of one word a token, and rows of full length."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, VOCABULARY))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for name, sizes in MODELS.items():
        for directory, kind in (
            ("causal", AutoModelForCausalLM),
            ("reward", AutoModelForSequenceClassification),
        ):
            if not (work / name / directory / "config.json").is_file():
                torch.manual_seed(0)
                labels = {"num_labels": 1} if directory == "reward" else {}
                kind.from_config(AutoConfig.for_model(name, **ids, **sizes, **labels)).save_pretrained(
                    work / name / directory
                )
                tokenizer.save_pretrained(work / name / directory)

    def text(start: int, count: int) -> str:
        return " ".join(f"w{4 + (start * 7 + i * 13) % (VOCABULARY - 4)}" for i in range(count))

    rows = [
        {"prompt": text(i, 8), "chosen": text(i + 1, 247 - i % 2), "rejected": text(i + 2, 247 - i % 3)}
        for i in range(64)
    ]
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"prompt": text(i, 96 - i % 2)} for i in range(64)]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))


def kept(work: Path, device: str, name: str, model: str, flags: str) -> dict[str, dict[str, int]]:
    """`compared`, or what it found when it was asked before: minutes a case."""
    before = work / "done" / f"{device} {name}.json"
    if not before.is_file():
        before.parent.mkdir(parents=True, exist_ok=True)
        before.write_text(json.dumps(compared(work, device, model, flags)))
    found: dict[str, dict[str, int]] = json.loads(before.read_text())
    return found


def compared(work: Path, device: str, model: str, flags: str) -> dict[str, dict[str, int]]:
    """Phase → bytes estimated and measured."""
    stage, *words = flags.split()
    base, out = work / model / "causal", work / "out"
    data = work / ("prompts.jsonl" if stage == "ppo" else "pairs.jsonl")
    words += ["--model_name_or_path", str(base), "--train_file", str(data), "--output_dir", str(out)]
    words += ["--overwrite_output_dir", "--save_strategy", "no", "--device", device, "--logging_steps", "1"]
    if stage == "ppo":
        words += ["--reward_model_name", str(work / model / "reward")]
        words = [word for word in words if word not in ("--save_strategy", "no")]
    environment = {**os.environ, **MEASURED_WITH}
    python, root = sys.executable, Path(__file__).resolve().parents[1]
    told = _run(
        [python, "-m", "rlhf_hw", "estimate", stage, *words, "--json", "--no_advice"], environment, root
    )
    estimated = {name: phase["total"] for name, phase in json.loads(told)["phases"].items()}
    result = work / "measured.json"
    _run([python, __file__, "--measure", str(result), device, stage, *words], environment, Path.cwd())
    measured = json.loads(result.read_text())
    found = {}
    for phase, peak in measured.items():
        if phase in estimated or phase in WITHIN:
            parts = WITHIN.get(phase, (phase,))
            found[phase] = {"estimated": max(estimated[part] for part in parts), "measured": peak}
    whole = {"estimated": max(estimated.values()), "measured": max(measured.values())}
    return {**found, "peak": whole}


def _run(command: Sequence[str], environment: dict[str, str], root: Path) -> str:
    environment = {**environment, "PYTHONPATH": f"{root}{os.pathsep}{environment.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def _rows(name: str, phases: dict[str, dict[str, int]]) -> list[str]:
    shown = []
    for phase, sizes in phases.items():
        if phase == "peak" or not name.startswith(("SFT", "RM")):
            ratio = sizes["estimated"] / sizes["measured"]
            inside = "" if abs(ratio - 1) <= 0.15 else " **outside**"
            cells = [name, phase, *(f"{sizes[kind] / 2**20:,.0f}" for kind in ("estimated", "measured"))]
            shown.append(f"| {' | '.join(cells)} | {ratio:.2f}{inside} |")
    return shown


def write_results(directory: Path, device: str, numbers: dict[str, Any]) -> None:
    """The table and its numbers."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread"
    software = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    date = datetime.date.today().isoformat()
    stem = "estimate" if device == "cpu" else f"estimate_{device}"
    about = {"date": date, "device": device, "machine": machine, "software": software}
    (directory / f"{stem}.json").write_text(json.dumps({**about, "bytes": numbers}, indent=1) + "\n")
    rows = [line for name, phases in numbers.items() for line in _rows(name, phases)]
    peaks = [phases["peak"] for phases in numbers.values()]
    inside = sum(abs(peak["estimated"] / peak["measured"] - 1) <= 0.15 for peak in peaks)
    lines = [
        f"# Estimated against measured memory ({device})",
        "",
        f"{date}, {machine}, {software}. Made by `benchmarks/estimate.py`; MiB.",
        "",
        _HOW[device],
        "",
        f"**{inside} of {len(peaks)} peaks are within 15%.**",
        "",
        "| case | phase | estimated | measured | estimated / measured |",
        "|---|---|---|---|---|",
        *rows,
    ]
    (directory / f"{stem}.md").write_text("\n".join(lines) + "\n")


_HOW = {
    "cpu": "Measured: the resident set's high-water mark of a phase, from the second step (PPO: update) on, over its level "
    "once everything was imported, with MALLOC_MMAP_THRESHOLD_=65536 and one arena. It holds what the estimate knows nothing "
    "of: scratch memory of matrix kernels, the data, the heap's small blocks.",
    "hpu": "Measured: the **emulator's** statistics of device memory (`max_memory_allocated`), in a phase, from the second "
    "step (PPO: update) on. No Gaudi was measured.",
}


if __name__ == "__main__":
    sys.exit(main())
