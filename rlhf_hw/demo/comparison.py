"""Two models on held-out prompts, side by side, judged by the gold score that neither was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from backends import Backend
from rlhf_hw.demo.gold import gold_score
from rlhf_hw.models.load import LoadOptions, load_policy, load_tokenizer
from rlhf_hw.rollout.engine import Sampling
from rlhf_hw.rollout.generate import GenerateEngine
from rlhf_hw.rollout.sampling import mix_seed
from rlhf_hw.trainers.reward import wilson_interval


@dataclass(frozen=True)
class Answer:
    """An answer with its gold score."""

    text: str
    gold: float


@dataclass(frozen=True)
class Comparison:
    """Answers of two models to the same prompts, drawn with the same random numbers."""

    prompts: list[str]
    before: list[Answer]
    after: list[Answer]

    @property
    def wins(self) -> int:
        return sum(new.gold > old.gold for old, new in zip(self.before, self.after, strict=True))

    @property
    def ties(self) -> int:
        return sum(new.gold == old.gold for old, new in zip(self.before, self.after, strict=True))

    @property
    def win_rate(self) -> float:
        """Share of prompts on which the second model's answer is better; a tie counts half."""
        return (self.wins + self.ties / 2) / len(self.prompts)

    @property
    def win_rate_interval(self) -> tuple[float, float]:
        """95% confidence interval of the win rate (Wilson)."""
        return wilson_interval(round(self.win_rate * len(self.prompts)), len(self.prompts))

    def mean_gold(self) -> tuple[float, float]:
        """Mean gold score before and after."""
        count = len(self.prompts)
        return sum(a.gold for a in self.before) / count, sum(a.gold for a in self.after) / count


def heldout_prompts() -> list[str]:
    """Prompts that no stage of the demo trains on."""
    text = resources.files("rlhf_hw.demo").joinpath("heldout.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in text.splitlines()]


def compare(
    before: str | Path, after: str | Path, backend: Backend, max_new_tokens: int, seed: int
) -> Comparison:
    """Let both models answer every held-out prompt and score the answers."""
    prompts = heldout_prompts()
    return Comparison(
        prompts,
        _answers(before, prompts, backend, max_new_tokens, seed),
        _answers(after, prompts, backend, max_new_tokens, seed),
    )


def _answers(
    directory: str | Path, prompts: Sequence[str], backend: Backend, max_new_tokens: int, seed: int
) -> list[Answer]:
    attention = backend.attention_implementation(backend.precision(False, False)).value
    options = LoadOptions(flag="--output_dir", attention=attention)
    tokenizer: Any = load_tokenizer(str(directory), options)
    model = load_policy(str(directory), options).to(backend.device)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    shapes = backend.rollout_shapes([len(row) for row in ids], max_new_tokens)
    engine = GenerateEngine(tokenizer, shapes, options=backend.generation_options())
    seeds = [mix_seed(seed, number) for number in range(len(prompts))]
    rollout = engine.generate(model, ids, Sampling(max_new_tokens), seeds)
    texts = rollout.texts(tokenizer)
    return [Answer(text, gold_score(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]
