"""Rollout engines against each other: CPU seconds of answering the same prompts, one thread, turn and turn about.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py [--device cuda] [--turns 9] [--rows 8] [--hidden 256 --layers 4 …]

A Llama made from a seed answers `--batch` prompts of 8 to 64 tokens with at most 64 tokens, each the last with probability
1/40. All engines draw from the same seeds. Each turn has prompts of its own; the first is not counted; a number is the median
of the others. `--rows`: so many are answered at a time, as PPO does with `--generation_batches`. On a GPU wall-clock seconds
are counted, the device waited for. Writes results/rollout.md and rollout.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backends import Backend, resolve
from backends.base import BackendError
from rlhf_hw.compat.continuous_batching import why_no_continuous_batching
from rlhf_hw.rollout.compact import CompactEngine
from rlhf_hw.rollout.engine import RolloutEngine, Sampling
from rlhf_hw.rollout.generate import GenerateEngine

RESULTS = Path(__file__).parent / "results"
PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 3
SHORTEST, LONGEST, ANSWER = 8, 64, 64
#: words of a random model are all about as likely: so many of them end an answer
END = 1 / 40


def policy(arguments: argparse.Namespace) -> Any:
    """A Llama with random weights, in fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        vocab_size=arguments.vocabulary,
        max_position_embeddings=256,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """All that an engine asks of one: its special tokens."""
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def prompts_of(turn: int, arguments: argparse.Namespace) -> list[list[int]]:
    """`--batch` prompts of uniform length."""
    source = torch.Generator().manual_seed(turn)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (arguments.batch,), generator=source).tolist()
    return [torch.randint(FIRST_WORD, arguments.vocabulary, (n,), generator=source).tolist() for n in lengths]


def measure(
    engines: dict[str, RolloutEngine],
    model: Any,
    backend: Backend,
    arguments: argparse.Namespace,
    *,
    autocast: bool,
) -> tuple[dict[str, list[float]], dict[str, int], int]:
    """(seconds of each engine in each counted turn, answers that differ from the first engine's, answer tokens a turn)."""
    clock: Callable[[], float] = time.process_time if backend.device_type == "cpu" else time.perf_counter
    ends = frozenset(range(EOS, EOS + round(arguments.vocabulary * END)))
    sampling = Sampling(ANSWER, end_tokens=ends)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    different, tokens = dict.fromkeys(engines, 0), 0
    for turn in range(arguments.turns + 1):
        prompts = prompts_of(turn, arguments)
        seeds = range(turn * arguments.batch, (turn + 1) * arguments.batch)
        first: list[list[int]] | None = None
        for name, engine in engines.items():
            start = clock()
            with torch.autocast(backend.device_type, torch.bfloat16) if autocast else nullcontext():
                rollout = engine.generate(model, prompts, sampling, seeds)
            backend.synchronize()
            if turn:
                seconds[name].append(clock() - start)
            answers = rollout.response_ids()
            first = answers if first is None else first
            different[name] += sum(a != b for a, b in zip(answers, first, strict=True))
        assert first is not None
        tokens += sum(map(len, first))
    return seconds, different, tokens // (arguments.turns + 1)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--turns", type=int, default=9, help="counted turns of each engine")
    parser.add_argument("--batch", type=int, default=32, help="prompts a turn")
    parser.add_argument("--rows", type=int, help="prompts that are answered at a time (default: all)")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for name in ("turns", "batch", "rows", "hidden", "layers", "vocabulary"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name}: got {value}, expected at least 1")
    try:
        arguments.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--results {arguments.results}: {error.strerror}; name another directory")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    try:
        backend = resolve(arguments.device)
    except BackendError as error:
        parser.error(str(error))
    model, words = policy(arguments).to(backend.device), tokenizer()
    rows_at_a_time = arguments.rows
    engines: dict[str, RolloutEngine] = {
        "generate": GenerateEngine(words, None, rows_at_a_time, backend.generation_options()),
        "compact": CompactEngine(words, None, rows_at_a_time, backend.decoding_options()),
    }
    if why_no_continuous_batching() is None:
        from rlhf_hw.rollout.continuous import ContinuousEngine

        engines["continuous"] = ContinuousEngine(
            words, None, rows_at_a_time, backend.decoding_options("continuous")
        )
    rows = []
    for precision in ("fp32", "bf16 autocast"):
        seconds, different, tokens = measure(engines, model, backend, arguments, autocast=precision != "fp32")
        for name, found in seconds.items():
            rows.append(
                {
                    "precision": precision,
                    "engine": name,
                    "seconds": round(statistics.median(found), 3),
                    "least": round(min(found), 3),
                    "most": round(max(found), 3),
                    "against_generate": round(
                        statistics.median(seconds["generate"]) / statistics.median(found), 2
                    ),
                    "answer_tokens": tokens,
                    "answers_unlike_generate": different[name],
                    "answers": arguments.batch * (arguments.turns + 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    write(rows, backend, arguments, sum(part.numel() for part in model.parameters()))


def write(rows: list[dict[str, Any]], backend: Backend, arguments: argparse.Namespace, weights: int) -> None:
    """results/rollout.json and rollout.md."""
    (arguments.results / "rollout.json").write_text(json.dumps(rows, indent=1) + "\n")
    threads = f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, {platform.machine()}"
    hardware = threads if arguments.device == "cpu" else str(backend.describe()["card"])
    unit = "CPU s" if arguments.device == "cpu" else "s"
    lines = [
        "# Rollout engines",
        "",
        f"`benchmarks/rollout.py`, {datetime.date.today()}, {hardware}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}. {weights / 1e6:.1f}M weights, {arguments.batch} prompts of {SHORTEST} to {LONGEST} tokens"
        f"{f', {arguments.rows} at a time' if arguments.rows else ''}, "
        f"{rows[0]['answer_tokens']} answer tokens a turn; medians of {arguments.turns} turns, engines turn and turn about.",
        "",
        f"| precision | engine | {unit} a turn (least to most) | times as fast as generate | answers unlike generate's |",
        "|---|---|---|---|---|",
        *(
            f"| {row['precision']} | {row['engine']} | {row['seconds']:.2f} ({row['least']:.2f} to {row['most']:.2f}) | "
            f"{row['against_generate']:.2f} | {row['answers_unlike_generate']} of {row['answers']} |"
            for row in rows
        ),
    ]
    (arguments.results / "rollout.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
