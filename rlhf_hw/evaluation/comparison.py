"""Two models' answers to the same prompts, decoded in one of five ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from rlhf_hw.data.example import Example
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.evaluation.decoding import LastPositions, contrastive_search, diverse_beam_search
from rlhf_hw.evaluation.instructions import prompt_ids
from rlhf_hw.models.wrapping import without_adapters
from rlhf_hw.rollout.engine import Sampling, end_token_ids
from rlhf_hw.rollout.generate import GenerateEngine, as_generation_config
from rlhf_hw.rollout.sampling import mix_seed

Method = Literal["greedy", "beam", "diverse beam", "sampling", "contrastive"]


@dataclass(frozen=True)
class Decoding:
    """How answers are written. `answers`: how many to each prompt; greedy and contrastive search know one."""

    method: Method
    max_new_tokens: int
    answers: int = 1
    beams: int = 1
    groups: int = 1
    diversity_penalty: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    temperature: float = 1.0
    penalty_alpha: float = 0.6
    no_repeat_ngram_size: int = 0
    seed: int = 0

    def check(self) -> None:
        """Raise UserError where a setting cannot act with this method."""
        if self.answers > 1 and self.method in ("greedy", "contrastive"):
            raise UserError(
                f"--num_return_sequences: {self.method} decoding knows one answer, got {self.answers}; use beams or sampling"
            )
        if "beam" in self.method and self.answers > self.beams:
            raise UserError(
                f"--num_return_sequences: {self.beams} beams cannot end in {self.answers} answers; raise --num_beams"
            )
        if self.no_repeat_ngram_size and self.method in ("diverse beam", "contrastive"):
            raise UserError(f"--no_repeat_ngram_size: does not act in {self.method} search; leave it out")
        if self.method == "contrastive" and self.top_k < 1:
            raise UserError(f"--top_k: got {self.top_k}; contrastive search needs at least 1 candidate")

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def written_answers(asked: Asked, examples: Sequence[Example], decoding: Decoding) -> list[list[str]]:
    """The answers to each prompt, as texts, the best first where they have an order.

    Raises:
        UserError: a prompt and its answer do not fit into the model's context.
    """
    prompts = [prompt_ids(example, asked.tokenizer) for example in examples]
    longest = max(map(len, prompts))
    if asked.context is not None and longest + decoding.max_new_tokens > asked.context:
        raise UserError(
            f"--max_new_tokens: {decoding.max_new_tokens} after a prompt of {longest} tokens exceed the context of "
            f"{asked.name}, {asked.context}; lower it"
        )
    if decoding.method in ("greedy", "sampling"):
        return _drawn(asked, prompts, decoding)
    write = {"beam": _beams, "diverse beam": _diverse_beams, "contrastive": _contrastive}[decoding.method]
    return [
        asked.tokenizer.batch_decode(write(asked, ids, decoding), skip_special_tokens=True) for ids in prompts
    ]


def _drawn(asked: Asked, prompts: list[list[int]], decoding: Decoding) -> list[list[str]]:
    """Greedy, or drawn: each answer from a seed of its own prompt and number, the same one for every model."""
    sampling = Sampling(
        decoding.max_new_tokens,
        temperature=decoding.temperature if decoding.method == "sampling" else 0.0,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        repetition_ngram=decoding.no_repeat_ngram_size,
    )
    shapes = asked.backend.rollout_shapes([len(ids) for ids in prompts], decoding.max_new_tokens)
    engine = GenerateEngine(asked.tokenizer, shapes, options=asked.backend.generation_options())
    repeated = [ids for ids in prompts for _ in range(decoding.answers)]
    seeds = [mix_seed(decoding.seed, *divmod(n, decoding.answers)) for n in range(len(repeated))]
    texts = engine.generate(asked.model, repeated, sampling, seeds).texts(asked.tokenizer)
    return [texts[start : start + decoding.answers] for start in range(0, len(texts), decoding.answers)]


def _beams(asked: Asked, ids: list[int], decoding: Decoding) -> list[list[int]]:
    """By transformers' own beam search; where shapes are fixed, by the one here, which keeps them."""
    if not asked.backend.shape_policy().may_vary:
        if decoding.no_repeat_ngram_size:
            raise UserError("--no_repeat_ngram_size: does not act with beams on this device; leave it out")
        return _diverse_beams(asked, ids, decoding)
    model = without_adapters(asked.model)
    config = type(model.generation_config)(
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        num_return_sequences=decoding.answers,
        **({"no_repeat_ngram_size": decoding.no_repeat_ngram_size} if decoding.no_repeat_ngram_size else {}),
        do_sample=False,
        pad_token_id=asked.tokenizer.pad_token_id,
        eos_token_id=sorted(end_token_ids(asked.tokenizer, asked.model)),
    )
    inputs = torch.tensor([ids], device=asked.backend.device)
    with as_generation_config(asked.model, config), torch.no_grad():
        sequences = asked.model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
        )
    return sequences[:, len(ids) :].tolist()


def _diverse_beams(asked: Asked, ids: list[int], decoding: Decoding) -> list[list[int]]:
    return diverse_beam_search(
        _last_positions(asked, ids, decoding),
        ids,
        beams=decoding.beams,
        groups=decoding.groups,
        diversity_penalty=decoding.diversity_penalty,
        max_new_tokens=decoding.max_new_tokens,
        end_ids=end_token_ids(asked.tokenizer, asked.model),
        answers=decoding.answers,
    )


def _contrastive(asked: Asked, ids: list[int], decoding: Decoding) -> list[list[int]]:
    answer = contrastive_search(
        _last_positions(asked, ids, decoding),
        ids,
        top_k=decoding.top_k,
        penalty_alpha=decoding.penalty_alpha,
        max_new_tokens=decoding.max_new_tokens,
        end_ids=end_token_ids(asked.tokenizer, asked.model),
    )
    return [answer]


def _last_positions(asked: Asked, ids: list[int], decoding: Decoding) -> LastPositions:
    """Texts as wide as they are, or always as wide as the longest may become where shapes are fixed."""
    policy = asked.backend.shape_policy()
    widest = len(ids) + decoding.max_new_tokens
    width = widest if policy.may_vary else policy.pad_length(widest)
    pad_length = policy.pad_length if policy.may_vary else lambda _: width
    context = asked.context
    within = (
        pad_length if context is None else lambda longest: max(longest, min(pad_length(longest), context))
    )
    return LastPositions(asked.model, asked.tokenizer.pad_token_id, within)
