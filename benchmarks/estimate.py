"""What `rlhf-hw estimate` says against what is measured: peak memory of real runs of each stage, on random models.

    python benchmarks/estimate.py [--only PART_OF_A_NAME] [--device hpu]

Cases that were measured before are not measured again (`--work`).

Each case is one command, asked about by `rlhf-hw estimate STAGE …` and run in a fresh process with its memory measured. On a CPU that is the resident set (its high-water mark, put back at the start of each phase), less what the same
command takes on a tiny model; on a Gaudi or the emulator the device's own statistics. Models and data are made on the spot, rows
of the length that the flags allow. Cases of two processes run under torchrun. Writes a table (Markdown) and its numbers
(JSON) to `--results`.

The C library keeps freed blocks in its heap, and counts them as the process's: measured is with MALLOC_MMAP_THRESHOLD_ at
64 KiB, so that larger blocks go back to the system when they are freed, and with one arena.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VOCABULARY = 8192
#: how an estimate calls what the process takes whatever the model
PROCESS = "process"
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
#: three steps (updates) of two processes: buffers of DistributedDataParallel are made anew in the second
SFT_3, PPO_3 = SFT.replace("--max_steps 2", "--max_steps 3"), PPO.replace("--steps 16", "--steps 48")
#: name → (model, flags, processes)
SHARED_CASES = {
    f"{stage}, {how}, 2 processes": (model, f"{flags} {sharing}", 2)
    for stage, model, flags in (
        ("SFT, Llama, full, fp32", "llama", f"{SFT_3} {FULL} {FP32}"),
        ("PPO, Llama, LoRA, shared, bf16", "llama", f"{PPO_3} {LORA} {BF16}"),
    )
    for how, sharing in (
        ("DDP", ""),
        ("ZeRO 1", "--deepspeed --zero_stage 1"),
        ("ZeRO 2", "--deepspeed --zero_stage 2"),
        ("ZeRO 3", "--deepspeed --zero_stage 3"),
        ("FSDP", "--fsdp"),
    )
}
SHARED_CASES["SFT, Llama, full, bf16, FSDP, 2 processes"] = ("llama", f"{SFT_3} {FULL} {BF16} --fsdp", 2)
#: what the process itself takes is told by the same command on a model as small as this
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
MEASURED_WITH = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
#: an estimate is good if it is off by no more than this share
WITHIN_SHARE = 0.15
#: a stage's phases → those of an estimate that happen within
WITHIN = {"optimise": ("update", "optimizer step")}


def main() -> int:
    """Estimate and measure each case and write the table."""
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
    known = {name: (*case, 1) for name, case in CASES.items()} | (
        SHARED_CASES if arguments.device == "cpu" else {}
    )
    cases = {name: case for name, case in known.items() if arguments.only in name}
    if not cases:
        parser.error(f"--only {arguments.only}: no case is named so; there are: {'; '.join(known)}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    make_materials(arguments.work)
    numbers = {}
    for name, case in cases.items():
        numbers[name] = compared(arguments.work, arguments.device, *case)
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
    for name, sizes in {**MODELS, "llama-tiny": TINY}.items():
        family = name.removesuffix("-tiny")
        for directory, kind in (
            ("causal", AutoModelForCausalLM),
            ("reward", AutoModelForSequenceClassification),
        ):
            if not (work / name / directory / "config.json").is_file():
                torch.manual_seed(0)
                labels = {"num_labels": 1} if directory == "reward" else {}
                kind.from_config(AutoConfig.for_model(family, **ids, **sizes, **labels)).save_pretrained(
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


def compared(work: Path, device: str, model: str, flags: str, processes: int) -> dict[str, dict[str, int]]:
    """Phase → bytes estimated and measured, and those that are the process's own: measured, and as the estimate has them."""
    command = (work, device, model, flags)
    estimated, term = estimate_of(command_of(*command), processes)
    measured = kept(*command, processes)
    own = process_of(work, device, flags, processes) if device == "cpu" else {}
    found = {}
    for phase, peak in measured.items():
        parts = [part for part in WITHIN.get(phase, (phase,)) if part in estimated]
        if parts:
            told = max(estimated[part] for part in parts)
            process = own.get(phase, 0)
            found[phase] = {"measured": peak, "process": process, "estimated": told, "process term": term}
    highest = max(found.values(), key=lambda sizes: sizes["measured"])
    return {**found, "peak": {**highest, "estimated": max(estimated.values())}}


def process_of(work: Path, device: str, flags: str, processes: int) -> dict[str, int]:
    """Phase → bytes that the process takes whatever the model: measured on a tiny Llama, less what that is estimated at."""
    flags = " ".join(flags.replace(AGAIN, "").split())
    command = (work, device, "llama-tiny", flags)
    estimated, _ = estimate_of(command_of(*command), processes)
    own = {}
    for phase, peak in kept(*command, processes).items():
        parts = [part for part in WITHIN.get(phase, (phase,)) if part in estimated]
        if parts:
            own[phase] = peak - max(estimated[part] for part in parts)
    return own


def command_of(work: Path, device: str, model: str, flags: str) -> list[str]:
    """The stage and its flags."""
    stage, *words = flags.split()
    base, out = work / model / "causal", work / "out" / str(os.getpid())
    data = work / ("prompts.jsonl" if stage == "ppo" else "pairs.jsonl")
    words += ["--model_name_or_path", str(base), "--train_file", str(data), "--output_dir", str(out)]
    words += ["--overwrite_output_dir", "--device", device, "--logging_steps", "1"]
    if stage == "ppo":
        return [stage, *words, "--reward_model_name", str(work / model / "reward")]
    return [stage, *words, "--save_strategy", "no"]


def estimate_of(words: Sequence[str], processes: int) -> tuple[dict[str, int], int]:
    """(phase → bytes without those of the process, these), as `rlhf-hw estimate` has it."""
    from rlhf_hw.cli.estimate import main as estimate

    told = io.StringIO()
    with redirect_stdout(told):
        estimate([*words, "--json", "--no_advice", "--processes", str(processes)])
    phases = json.loads(told.getvalue())["phases"]
    terms = [phase["terms"].pop(PROCESS, 0) for phase in phases.values()]
    return {name: sum(phase["terms"].values()) for name, phase in phases.items()}, max(terms)


def kept(work: Path, device: str, model: str, flags: str, processes: int) -> dict[str, int]:
    """Phase → bytes at its peak, as `measured_stage.py` finds them, or found them when it was asked before."""
    named = "_".join([device, model, *flags.replace("--", "").split(), str(processes)])
    result = work / "done" / f"{named}.json"
    if not result.is_file():
        result.parent.mkdir(parents=True, exist_ok=True)
        python, program = [sys.executable], Path(__file__).with_name("measured_stage.py")
        if processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            python += launch
        started = time.perf_counter()
        _run([*python, str(program), str(result), device, *command_of(work, device, model, flags)])
        print(f"  measured {model} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    found: dict[str, int] = json.loads(result.read_text())
    return found


def _run(command: Sequence[str]) -> str:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, **MEASURED_WITH}
    environment["PYTHONPATH"] = f"{root}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def _ratio(sizes: dict[str, int]) -> float:
    """Estimated over measured, without what is the process's own."""
    return sizes["estimated"] / (sizes["measured"] - sizes["process"])


def _rows(name: str, phases: dict[str, dict[str, int]]) -> list[str]:
    shown = []
    for phase, sizes in phases.items():
        if phase == "peak" or not name.startswith(("SFT", "RM")):
            ratio = _ratio(sizes)
            inside = "" if abs(ratio - 1) <= WITHIN_SHARE else " **outside**"
            parts = (sizes["measured"], sizes["process"], sizes["measured"] - sizes["process"])
            cells = [name, phase, *(f"{size / 2**20:,.0f}" for size in (*parts, sizes["estimated"]))]
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
    inside = sum(abs(_ratio(peak) - 1) <= WITHIN_SHARE for peak in peaks)
    lines = [
        f"# Estimated against measured memory ({device})",
        "",
        f"{date}, {machine}, {software}. Made by `benchmarks/estimate.py`; MiB.",
        "",
        _HOW[device],
        "",
        f"**{inside} of {len(peaks)} peaks are within 15%.**",
        "",
        "| case | phase | measured | of it the process's | the model's | estimated | estimated / model's |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    left = [name for name in (*CASES, *(SHARED_CASES if device == "cpu" else ())) if name not in numbers]
    if left:
        lines += ["", f"Not measured: {'; '.join(left)}."]
    (directory / f"{stem}.md").write_text("\n".join(lines) + "\n")


_HOW = {
    "cpu": "Measured: the resident set's high-water mark of a phase, from the second step (PPO: update) on, with "
    "MALLOC_MMAP_THRESHOLD_=65536 and one arena; of two processes the higher one's. Of it the process's: the same, measured with "
    "the same flags on a Llama of one layer of width 64, less what that model is estimated at. The rest is the model's, and is "
    "held against the estimate without its term `process`.",
    "hpu": "Measured: the **emulator's** statistics of device memory (`max_memory_allocated`), in a phase, from the second "
    "step (PPO: update) on. No Gaudi was measured.",
}


if __name__ == "__main__":
    sys.exit(main())
