"""From one card to 8, to several machines, and to 70B: memory, time and traffic of each stage. Writes docs/scaling.md.

    python benchmarks/scaling.py              # the page, from results/scaling.json
    python benchmarks/scaling.py --estimate   # the memory anew first, by rlhf-hw estimate (minutes)

Arithmetic and estimates: nothing on the page was run on a GPU or a Gaudi.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backends.cards import CARDS, Card
from rlhf_hw.estimate.known_models import KNOWN

ROOT = Path(__file__).resolve().parents[1]
MEMORY = ROOT / "benchmarks" / "results" / "scaling.json"
MEASURED = ROOT / "benchmarks" / "results" / "estimate.json"
PAGE = ROOT / "docs" / "scaling.md"
MODELS = ("opt-1.3b", "llama-2-7b", "llama-2-13b", "llama-2-70b")
PROMPT, ANSWER, ROWS, EPOCHS, MICRO = 512, 512, 16, 4, 2

# Assumed: nothing of this was measured on the hardware that it is about
UTILISATION_UPDATE, UTILISATION_SCORE = 0.4, 0.5  #: of a card's bf16 peak
UTILISATION_DECODE = 0.6  #: of its memory bandwidth
UTILISATION_LINK = 0.7
BETWEEN_MACHINES = 50  #: GB/s each way for the 8 cards of a machine together: 400 Gbit/s
# Measured on one core of a server CPU with AMX (torch 2.13.0): GFLOP/s of large matrix products
CPU_FP32, CPU_BF16 = 86, 410

_EVERY = "--bf16 True --gradient_checkpointing"
_STAGES = {
    "SFT": f"sft {_EVERY} --max_seq_length {PROMPT + ANSWER} --per_device_train_batch_size {MICRO}",
    "RM": f"reward {_EVERY} --max_length {PROMPT + ANSWER} --per_device_train_batch_size {MICRO} --do_eval False",
    "PPO": f"ppo {_EVERY} --batch_size {ROWS} --mini_batch_size {MICRO} --gradient_accumulation_steps {ROWS // MICRO} "
    f"--max_prompt_length {PROMPT} --output_max_length {ANSWER}",
}
#: how it is trained → (flags, processes)
_WAYS = {
    "LoRA, 1 card": ("--peft lora", 1),
    "full, 8 cards, ZeRO-3": ("--full_finetune --deepspeed --zero_stage 3", 8),
}
_ONE_CARD = {"bf16 base": "--peft lora", "4-bit base": "--qlora"}


def questions() -> Iterator[tuple[str, str, int]]:
    """(name, flags, processes) of every estimate on the page."""
    for model in MODELS:
        for stage, flags in _STAGES.items():
            for way, (more, processes) in _WAYS.items():
                yield f"{model}, {stage}, {way}", f"{flags} {more} --model_name_or_path {model}", processes
    for base, more in _ONE_CARD.items():
        for rows in (ROWS, 4):
            flags = _STAGES["PPO"].replace(
                f"--batch_size {ROWS} ", f"--batch_size {rows} --generation_batches {ROWS // rows} "
            )
            yield (
                f"7B PPO, {base}, {rows} answers at a time",
                f"{flags} {more} --model_name_or_path llama-2-7b",
                1,
            )


def ask(flags: str, processes: int) -> dict[str, Any]:
    """Phase → bytes, by `rlhf-hw estimate` for a card with bf16 (memory does not depend on which)."""
    from rlhf_hw.arguments.estimate import parse_estimate
    from rlhf_hw.cli.estimate import conditions_of
    from rlhf_hw.estimate.stages import estimate

    asked = parse_estimate(
        [*flags.split(), "--card", "h100-80", "--processes", str(processes), "--no_advice"]
    )
    found = estimate(asked.run, conditions_of(asked))
    return {phase.name: phase.total for phase in found.phases}


# Sizes, operations, traffic


@dataclass(frozen=True)
class Sizes:
    """parameters: all; layers, width, and the width of keys and values of a layer."""

    parameters: float
    layers: int
    width: int
    cached: int

    @classmethod
    def of(cls, model: str) -> Sizes:
        known = KNOWN[model]
        width, layers, vocabulary = known["hidden_size"], known["num_hidden_layers"], known["vocab_size"]
        cached = (
            2
            * width
            * known.get("num_key_value_heads", known["num_attention_heads"])
            // known["num_attention_heads"]
        )
        if known["model_type"] == "llama":
            layer = 2 * width * width + cached * width + 3 * width * known["intermediate_size"]
            return cls(layers * layer + 2 * vocabulary * width, layers, width, cached)
        return cls(
            layers * (4 * width**2 + 2 * width * known["ffn_dim"]) + vocabulary * width, layers, width, cached
        )

    def forward(self, tokens: float, length: int) -> float:
        """Operations of a forward pass through `tokens` tokens in rows of `length`: 2 a weight, and causal attention."""
        return tokens * (2 * self.parameters + 2 * self.layers * self.width * length)


def update_seconds(card: Card, sizes: Sizes, tokens: float, length: int, *, full: bool) -> float:
    """Forward, recomputed forward and backward pass: 4 forward passes' worth; LoRA's backward pass makes no gradients of
    weights: 3."""
    return (4 if full else 3) * sizes.forward(tokens, length) / (card.bf16 * 1e12 * UTILISATION_UPDATE)


def score_seconds(card: Card, sizes: Sizes, tokens: float, length: int, passes: int) -> float:
    """Forward passes alone."""
    return passes * sizes.forward(tokens, length) / (card.bf16 * 1e12 * UTILISATION_SCORE)


def rollout_seconds(card: Card, sizes: Sizes, rows: int) -> float:
    """Prompts as scored; then each token reads all weights (bf16) and the cache so far: bound by bandwidth, or by
    operations where many rows are answered together."""
    prompt = score_seconds(card, sizes, rows * PROMPT, PROMPT, 1)
    cache = rows * sizes.layers * sizes.cached * 2 * (PROMPT + ANSWER / 2)
    read = (2 * sizes.parameters + cache) / (card.bandwidth * 1e9 * UTILISATION_DECODE)
    return prompt + ANSWER * max(read, score_seconds(card, sizes, rows, PROMPT, 1))


def traffic(sizes: Sizes, way: str, cards: int, micro_batches: int) -> float:
    """Bytes that a card sends in an optimizer step. DDP: a ring's all-reduce of fp32 gradients. ZeRO-3: weights gathered
    for the forward and the backward pass of every micro-batch (fp32, as they are held), gradients scattered."""
    share = (cards - 1) / cards
    if way == "LoRA":
        return 2 * share * 4 * 0.002 * sizes.parameters
    if way == "DDP":
        return 2 * share * 4 * sizes.parameters
    return micro_batches * 3 * share * 4 * sizes.parameters


def link(card: Card, cards: int) -> float:
    """GB/s of the slowest link of a ring: between cards, or between machines of 8, which the ring crosses once."""
    return (card.link if cards <= 8 else min(card.link, BETWEEN_MACHINES)) * UTILISATION_LINK


# The page


def page(memory: dict[str, Any]) -> str:
    """docs/scaling.md."""
    found = memory["bytes"]
    parts = [
        "# Scaling: one card, eight, several machines, 70B",
        "",
        "**Nothing on this page was run on a GPU or a Gaudi.** It is arithmetic, written by `benchmarks/scaling.py`: memory is "
        "*estimated* ([memory.md](memory.md)), speeds of cards are from makers' *data sheets*, utilisations are *assumed*. "
        f"Memory was estimated on {memory['date']}.",
        "",
        _held_against_measurements(),
        "",
        "## The numbers it rests on",
        "",
        *_constants(),
        "",
        "## Memory of a process, GiB at the worst moment",
        "",
        f"bf16 autocast, gradient checkpointing, micro-batches of {MICRO}, rows of {PROMPT + ANSWER} tokens (PPO: prompts of "
        f"{PROMPT}, answers of {ANSWER}, {ROWS} at a time). PPO with LoRA: policy, reference, value head and reward adapter on one "
        "base; full: policy, reference and reward model apart. In brackets the worst phase. Weights that train are fp32.",
        "",
        *_memory_table(found),
        "",
        "–: not estimated; `python benchmarks/scaling.py --estimate` does all. What is held from step to step has a closed form, GiB:",
        "",
        *_held_table(),
        "",
        "A full fine-tune holds 16 bytes a weight (weight, gradient, AdamW's two), so 7B is more than a card of 80 GiB holds; ZeRO-3 "
        "divides them, but rollouts gather the policy whole, and that bounds PPO.",
        "",
        "## 7B PPO with LoRA on one RTX 4090 (24 GiB) or A100 (40 GiB)",
        "",
        *_one_card(found),
        "",
        "## Time of a PPO update by phase, seconds",
        "",
        f"{ROWS} answers a card, {EPOCHS} epochs, all lengths as above. Rollout and scores need no network; LoRA's gradients are small.",
        "",
        *_time_table(),
        "",
        "## Time of SFT and reward model, tokens a second and card",
        "",
        *_training_table(),
        "",
        "## Network",
        "",
        *_network_table(),
        "",
        "What follows: inside a machine with NVLink or Gaudi's links, gradients of a full fine-tune hide behind the update. Between "
        "machines ZeRO-3 sends all weights three times a micro-batch: use micro-batches as large as memory allows, few accumulation "
        "steps, or LoRA, whose traffic is a thousandth. Rollouts scale with cards and without traffic: a prompt's answer is one card's.",
    ]
    return "\n".join(parts) + "\n"


def _held_against_measurements() -> str:
    peaks = {}
    for name, phases in json.loads(MEASURED.read_text())["bytes"].items():
        peak = phases["peak"]
        peaks[name] = peak["estimated"] / (peak["measured"] - peak["process"])
    missed = [f'"{name}" at {ratio:.2f}' for name, ratio in peaks.items() if abs(ratio - 1) > 0.15]
    return (
        f"Of {len(peaks)} small cases measured on a CPU, {len(peaks) - len(missed)} peaks are estimated within 15%; outside "
        f"(estimated / measured): {', '.join(missed) or 'none'} ([memory.md](memory.md#held-against-measurements)). On a card "
        "nothing was measured."
    )


def _constants() -> list[str]:
    lines = ["| number | value | where from |", "|---|---|---|"]
    for card in CARDS.values():
        value = f"{card.memory:g} GiB, {card.bf16:g} TFLOP/s bf16, {card.bandwidth:g} GB/s memory, {card.link:g} GB/s link"
        lines.append(f"| {card.name} | {value} | data sheet |")
    assumed = {
        "share of bf16 peak in an update": f"{UTILISATION_UPDATE:.0%}",
        "share of bf16 peak in scoring": f"{UTILISATION_SCORE:.0%}",
        "share of memory bandwidth in decoding": f"{UTILISATION_DECODE:.0%}",
        "share of a link": f"{UTILISATION_LINK:.0%}",
        "between machines": f"{BETWEEN_MACHINES} GB/s a machine of 8 cards (400 Gbit/s)",
    }
    lines += [f"| {name} | {value} | assumed |" for name, value in assumed.items()]
    lines.append(
        f"| matrix products on one CPU core with AMX | {CPU_FP32} GFLOP/s fp32, {CPU_BF16} bf16 | measured (torch 2.13.0) |"
    )
    return lines


def _memory_table(found: dict[str, dict[str, int]]) -> list[str]:
    heads = [f"{stage}, {way}" for stage in _STAGES for way in _WAYS]
    lines = ["| model | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for model in MODELS:
        cells = [_peak(found.get(f"{model}, {head}")) for head in heads]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def _held_table() -> list[str]:
    """Weights, gradients and AdamW's state alone, by the bytes a weight that memory.md has."""
    bytes_a_weight = {
        "LoRA, bf16 base": 2.0,
        "LoRA, 4-bit base": 0.52,
        "full, 1 card": 16.0,
        "full, 8 cards, ZeRO-3": (16 + 4) / 8,
        "full, 64 cards, ZeRO-3": (16 + 4) / 64,
        "its policy gathered for rollouts": 4.0,
    }
    lines = [
        "| model | parameters | " + " | ".join(bytes_a_weight) + " |",
        "|---" * (len(bytes_a_weight) + 2) + "|",
    ]
    for model in MODELS:
        count = Sizes.of(model).parameters
        cells = [f"{count * each / 2**30:,.1f}" for each in bytes_a_weight.values()]
        lines.append(f"| {model} | {count / 1e9:.2f}B | " + " | ".join(cells) + " |")
    return lines


def _peak(phases: dict[str, int] | None) -> str:
    if phases is None:
        return "–"
    worst = max(phases, key=lambda name: phases[name])
    return f"{phases[worst] / 2**30:.0f} ({worst})"


def _one_card(found: dict[str, dict[str, int]]) -> list[str]:
    from rlhf_hw.estimate.advice import HEADROOM

    lines = [
        f"One base for policy, reference, value and reward; {HEADROOM:.0%} of the card left free. The 4-bit arithmetic is that of the "
        "paper, and was not run.",
        "",
        "| base | GiB by phase | peak | RTX 4090 (24 GiB) | A100 (40 GiB) |",
        "|---|---|---|---|---|",
    ]
    for name, phases in found.items():
        if name.startswith("7B PPO"):
            peak = max(phases.values())
            cells = [
                "fits" if peak <= CARDS[card].memory * 2**30 * (1 - HEADROOM) else "does not fit"
                for card in ("rtx4090-24", "a100-40")
            ]
            by_phase = ", ".join(f"{phase} {size / 2**30:.1f}" for phase, size in phases.items())
            lines.append(
                f"| {name.removeprefix('7B PPO, ')} | {by_phase} | {peak / 2**30:.1f} | {' | '.join(cells)} |"
            )
    largest = max(max(phases.values()) for name, phases in found.items() if name.startswith("7B PPO")) / 2**30
    usable = {card: CARDS[card].memory * (1 - HEADROOM) for card in ("rtx4090-24", "l4-24")}
    lines += [
        "",
        f"The largest is tight on the RTX 4090: {largest:.1f} of the {usable['rtx4090-24']:.1f} GiB that the estimate gives out. An L4 or "
        f"an A10 has {CARDS['l4-24'].memory:g} GiB, of which {usable['l4-24']:.1f}: it "
        f"{'fits there too' if largest <= usable['l4-24'] else 'does not fit there'}. Draw fewer answers at a time where in doubt.",
    ]
    return lines


def _time_table() -> list[str]:
    lines = [
        "| model | card | rollout | scores (reward, reference, policy) | update, LoRA | update, full |",
        "|---|---|---|---|---|---|",
    ]
    length = PROMPT + ANSWER
    for model in MODELS:
        sizes = Sizes.of(model)
        for name in ("a100-80", "h100-80", "gaudi2-96"):
            card, tokens = CARDS[name], ROWS * length
            cells = [
                rollout_seconds(card, sizes, ROWS),
                score_seconds(card, sizes, tokens, length, 3),
                update_seconds(card, sizes, EPOCHS * tokens, length, full=False),
                update_seconds(card, sizes, EPOCHS * tokens, length, full=True),
            ]
            lines.append(f"| {model} | {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return lines


def _training_table() -> list[str]:
    names = ("a100-80", "h100-80", "gaudi2-96")
    lines = ["| model | " + " | ".join(f"{name}, {way}" for name in names for way in ("LoRA", "full")) + " |"]
    lines.append("|---" * (2 * len(names) + 1) + "|")
    for model in MODELS:
        cells = []
        for name in names:
            for full in (False, True):
                seconds = update_seconds(CARDS[name], Sizes.of(model), 1, PROMPT + ANSWER, full=full)
                cells.append(f"{1 / seconds:,.0f}")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def _network_table() -> list[str]:
    lines = [
        f"Seconds a card sends in an optimizer step of {ROWS} rows a card ({ROWS // MICRO} micro-batches), beside those it computes "
        "(full, H100).",
        "",
        "| model | computes | LoRA, 8 cards | DDP, 8 cards | ZeRO-3, 8 cards | LoRA, 16 cards | ZeRO-3, 16 cards (2 machines) |",
        "|---|---|---|---|---|---|---|",
    ]
    card = CARDS["h100-80"]
    for model in MODELS:
        sizes = Sizes.of(model)
        computes = update_seconds(card, sizes, ROWS * (PROMPT + ANSWER), PROMPT + ANSWER, full=True)
        cells = [
            traffic(sizes, way, cards, ROWS // MICRO) / (link(card, cards) * 1e9)
            for way, cards in (("LoRA", 8), ("DDP", 8), ("ZeRO-3", 8), ("LoRA", 16), ("ZeRO-3", 16))
        ]
        lines.append(f"| {model} | {computes:.1f} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate where asked, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--estimate", action="store_true", help="estimate the memory anew")
    arguments = parser.parse_args(argv)
    if arguments.estimate:
        found = {}
        for name, flags, processes in questions():
            found[name] = ask(flags, processes)
            print(name, found[name], flush=True)
        MEMORY.write_text(
            json.dumps({"date": datetime.date.today().isoformat(), "bytes": found}, indent=1) + "\n"
        )
    PAGE.write_text(page(json.loads(MEMORY.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
