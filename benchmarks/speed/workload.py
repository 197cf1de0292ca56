"""The work that both sides are given: models, prompts with planned answers, examples and pairs. The same for each seed.

A language model made from scratch, words that are numbers, and lengths as real data has them: uniform prompts, geometric
answers, log-normal examples. Answers are planned, so that both sides train on the very same tokens: each side still
decodes and draws every token, and is then told another one.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 3
CONTEXT = 1024
SHORTEST_EXAMPLE = 16
#: what a field of `Size` must be at least, where that is not 1; an answer of one token could only end
_LEAST = {"example_batch": 0, "even": 0, "seed": 0, "answer": 2, "longest_example": SHORTEST_EXAMPLE}


@dataclass(frozen=True)
class Size:
    """How large the model, an update of PPO and an epoch of the other stages are.

    Raises:
        ValueError: a number that no model or batch can have; names the field.
    """

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
    example_batch: int = 0  #: examples an optimizer step; 0: what each trainer takes by default
    even: int = 0  #: 1: lengths are the even quantiles of their distribution in place of draws from it
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            least = _LEAST.get(field.name, 1)
            if getattr(self, field.name) < least:
                raise ValueError(f"{field.name}={getattr(self, field.name)}: must be at least {least}")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden}: must be a multiple of 2 and, from 128 on, of 64")
        if self.batch % self.minibatch:
            raise ValueError(f"minibatch={self.minibatch}: must divide batch={self.batch}")
        if self.vocabulary <= FIRST_WORD:
            raise ValueError(
                f"vocabulary={self.vocabulary}: must be more than {FIRST_WORD}, the special tokens"
            )
        if self.shortest_prompt > self.longest_prompt:
            raise ValueError(
                f"shortest_prompt={self.shortest_prompt}: is more than longest_prompt={self.longest_prompt}"
            )

    @property
    def heads(self) -> int:
        return max(1, self.hidden // 64)

    @property
    def end(self) -> float:
        """Answers end with this probability at each token: 1/40 where they may have 64."""
        return 1 / (self.answer * 40 / 64)

    @property
    def context(self) -> int:
        return max(CONTEXT, self.longest_example, self.longest_prompt + self.answer)

    @property
    def trunk_parameters(self) -> int:
        """Weights that every token meets, without embeddings and head."""
        attention, mlp = 4 * self.hidden**2, 3 * self.hidden * 4 * self.hidden
        return self.layers * (attention + mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights of the policy, but those of its norms."""
        return self.trunk_parameters + 2 * self.head_parameters


def changed(size: Size, words: Sequence[str]) -> Size:
    """`size` with what words such as `hidden=128` say.

    Raises:
        ValueError: a word that is none; says which, and what can be said.
    """
    numbers = {}
    for word in words:
        name, _, number = word.partition("=")
        known = [field.name for field in fields(Size)]
        if name not in known or not number.isdecimal():
            raise ValueError(f"{word}: must be NAME=NUMBER, with a name of {', '.join(known)}")
        numbers[name] = int(number)
    return replace(size, **numbers)


def words(size: Size, count: int, source: random.Random) -> list[int]:
    """Ids of `count` words, none of them special."""
    return [source.randrange(FIRST_WORD, size.vocabulary) for _ in range(count)]


def draws(size: Size, count: int, source: random.Random) -> Iterator[float]:
    """`count` numbers between 0 and 1: drawn as they are asked for, or (`even`) the middles of equal parts, shuffled."""
    if not size.even:
        return (source.random() for _ in range(count))
    middles = [(number + 0.5) / count for number in range(count)]
    source.shuffle(middles)
    return iter(middles)


def prompts_with_answers(size: Size) -> list[dict[str, list[int]]]:
    """Prompts of uniform length, each with its answer of geometric length; an answer shorter than the limit ends in EOS."""
    source = random.Random(size.seed)
    shortest, longest = size.shortest_prompt, size.longest_prompt
    even = list(draws(size, size.prompts, source)) if size.even else []
    ends = draws(size, size.prompts, source)  # where they are not even, drawn in turn with the words
    rows = []
    for row in range(size.prompts):
        long = (
            shortest + int(even[row] * (longest - shortest + 1))
            if even
            else source.randint(shortest, longest)
        )
        prompt = words(size, long, source)
        length = 1 + int(math.log(1 - next(ends)) / math.log(1 - size.end))
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


def example_length(size: Size, source: random.Random, even: float | None = None) -> int:
    """Log-normal: in batches of eight, padded to the longest, about a third of the places is filled."""
    middle, spread = math.log(size.longest_example * 70 / 512), 1.1
    drawn = (
        source.lognormvariate(middle, spread)
        if even is None
        else math.exp(NormalDist(middle, spread).inv_cdf(even))
    )
    return max(SHORTEST_EXAMPLE, min(size.longest_example, int(drawn)))


def examples(size: Size) -> list[dict[str, list[int]]]:
    """Supervised examples: the last two thirds of each are learnt."""
    source = random.Random(size.seed + 1)
    even: list[Any] = list(draws(size, size.examples, source)) if size.even else [None] * size.examples
    rows = []
    for quantile in even:
        ids = [*words(size, example_length(size, source, quantile) - 1, source), EOS]
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
        model_max_length=size.context,
        padding_side="left",
    )
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.context,
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
