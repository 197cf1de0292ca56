"""The work that both sides are given: models, prompts with planned answers, examples and pairs. The same for each seed.

A language model made from scratch, words that are numbers, and lengths as real data has them: uniform prompts, geometric
answers, log-normal examples. Answers are planned, so that both sides train on the very same tokens: each side still
decodes and draws every token, and is then told another one.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 3
#: answers end with this probability at each token
END = 1 / 40
CONTEXT = 1024


@dataclass(frozen=True)
class Size:
    """How large the model and an update of PPO are."""

    hidden: int = 256
    layers: int = 4
    vocabulary: int = 4096
    prompts: int = 512  #: in the data set
    batch: int = 32  #: answers an update
    minibatch: int = 8  #: answers an optimizer step
    epochs: int = 4  #: over the answers of an update
    shortest_prompt: int = 8
    longest_prompt: int = 64
    answer: int = 64  #: longest answer
    examples: int = 96  #: of supervised fine-tuning, and pairs of the reward model
    longest_example: int = 512
    seed: int = 0

    @property
    def heads(self) -> int:
        return max(1, self.hidden // 64)

    @property
    def trunk_parameters(self) -> int:
        """Weights that every token meets, without embeddings and head."""
        attention, mlp = 4 * self.hidden**2, 3 * self.hidden * 4 * self.hidden
        return self.layers * (attention + mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary


def words(size: Size, count: int, source: random.Random) -> list[int]:
    """Ids of `count` words, none of them special."""
    return [source.randrange(FIRST_WORD, size.vocabulary) for _ in range(count)]


def prompts_with_answers(size: Size) -> list[dict[str, list[int]]]:
    """Prompts of uniform length, each with its answer of geometric length; an answer shorter than the limit ends in EOS."""
    source = random.Random(size.seed)
    rows = []
    for _ in range(size.prompts):
        prompt = words(size, source.randint(size.shortest_prompt, size.longest_prompt), source)
        length = 1 + int(math.log(1 - source.random()) / math.log(1 - END))
        answer = words(size, min(length, size.answer) - 1, source)
        rows.append({"prompt": prompt, "answer": [*answer, EOS if length <= size.answer else FIRST_WORD]})
    return rows


def lengthened(rows: list[dict[str, list[int]]], size: Size) -> list[dict[str, list[int]]]:
    """The same prompts, each with an answer of full length that never ends."""
    answers = [[token for token in row["answer"] if token >= FIRST_WORD] or [FIRST_WORD] for row in rows]
    return [
        {**row, "answer": (answer * size.answer)[: size.answer]}
        for row, answer in zip(rows, answers, strict=True)
    ]


def example_length(size: Size, source: random.Random) -> int:
    """Log-normal: in batches of eight, padded to the longest, about a third of the places is filled."""
    return max(16, min(size.longest_example, int(source.lognormvariate(math.log(70), 1.1))))


def examples(size: Size) -> list[dict[str, list[int]]]:
    """Supervised examples: the last two thirds of each are learnt."""
    source = random.Random(size.seed + 1)
    rows = []
    for _ in range(size.examples):
        ids = [*words(size, example_length(size, source) - 1, source), EOS]
        learnt = [int(place >= len(ids) // 3) for place in range(len(ids))]
        rows.append({"input_ids": ids, "loss_mask": learnt})
    return rows


def pairs(size: Size) -> list[dict[str, list[int]]]:
    """Preference pairs: one prompt, two answers."""
    source = random.Random(size.seed + 2)
    rows = []
    for _ in range(size.examples):
        prompt = words(size, example_length(size, source) // 2, source)
        answers = [words(size, example_length(size, source) // 2 - 1, source) for _ in range(2)]
        sides = [[*prompt, *answer, EOS] for answer in answers]  # TRL drops pairs beyond its `max_length`
        rows.append({"chosen": sides[0], "rejected": sides[1]})
    return rows


def make_materials(directory: Path, size: Size) -> None:
    """Write `policy/` and `reward/` (one model with another head) with their tokenizer, and the data as JSON."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    directory.mkdir(parents=True, exist_ok=True)
    names = ["<pad>", "<s>", "</s>", *(f"t{number}" for number in range(FIRST_WORD, size.vocabulary))]
    plain = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="t3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        padding_side="left",
    )
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        attention_dropout=0.0,
    )
    torch.manual_seed(size.seed)
    policy = LlamaForCausalLM(config)
    config.num_labels = 1
    reward = LlamaForSequenceClassification(config)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    data = {
        "size": asdict(size),
        "prompts": prompts_with_answers(size),
        "examples": examples(size),
        "pairs": pairs(size),
    }
    (directory / "data.json").write_text(json.dumps(data))


def read_materials(directory: Path) -> tuple[Size, dict[str, Any]]:
    """What `make_materials` wrote: (size, data)."""
    data = json.loads((directory / "data.json").read_text())
    return Size(**data.pop("size")), data


def order_of_updates(size: Size, updates: int) -> list[list[int]]:
    """Which prompts (numbers of rows) each update answers: both sides are given these."""
    source, order = random.Random(size.seed + 3), []
    while len(order) < updates * size.batch:
        turn = list(range(size.prompts))
        source.shuffle(turn)
        order += turn
    return [order[update * size.batch :][: size.batch] for update in range(updates)]
