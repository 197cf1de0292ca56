"""Models and data small enough that three stages on a device take seconds; the same each time they are made."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tiny_models import ARCHITECTURES, VOCABULARY, tiny_model, word_tokenizer
from tiny_roles import trained_adapter

TRAIN_ROWS, EVAL_ROWS = 80, 10


def make(directory: Path) -> None:
    """Write train.jsonl, eval.jsonl, a causal model of each architecture, a Llama with one label as `reward`, the
    tokenizer (with the Llamas), LoRA adapters on the Llama as `sft` and `scores` (a reward model's), and `unfused`: a
    Gaudi configuration with torch's own AdamW."""
    directory.mkdir(parents=True, exist_ok=True)
    write_pairs(directory / "train.jsonl", TRAIN_ROWS, seed=0)
    write_pairs(directory / "eval.jsonl", EVAL_ROWS, seed=1)
    for architecture in ARCHITECTURES:
        tiny_model(architecture).save_pretrained(directory / architecture)
    word_tokenizer().save_pretrained(directory / "llama")
    tiny_model("llama", labels=1, seed=5).save_pretrained(directory / "reward")
    word_tokenizer().save_pretrained(directory / "reward")
    for name, task, labels in (("sft", "CAUSAL_LM", None), ("scores", "SEQ_CLS", 1)):
        base = tiny_model("llama", labels=labels)
        base.name_or_path = str(directory / "llama")
        trained_adapter(base, task, 21, directory / name)
    (directory / "unfused").mkdir(exist_ok=True)
    config = {"use_fused_adam": False, "use_fused_clip_norm": True}
    (directory / "unfused" / "gaudi_config.json").write_text(json.dumps(config))


def write_pairs(path: Path, count: int, seed: int) -> None:
    """Prompts of 2 to 8 words with a chosen and a rejected answer of 3 to 30: three buckets' worth of lengths."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(4, VOCABULARY)}" for _ in range(draw.randint(low, high)))

    rows = [{"prompt": words(2, 8), "chosen": words(3, 30), "rejected": words(3, 30)} for _ in range(count)]
    path.write_text("".join(json.dumps({**row, "chosen": " " + row["chosen"]}) + "\n" for row in rows))
