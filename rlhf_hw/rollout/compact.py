"""An engine of our own: one decoder call a step, for the rows whose answers have not ended.

Prompts are prefilled longest first, a few at a time, so that short ones are not padded to the longest. Keys and values
have their place from the start. A row that has ended gives its place to the last row in use; where the longest prompts
are through, attention begins later. Positions, masks and score processors are those of transformers' `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from backends.base import DecodingOptions
from backends.shapes import RolloutShapes
from rlhf_hw.errors import UserError
from rlhf_hw.models.unpadded import attends_by_interface
from rlhf_hw.models.wrapping import foreign_module, in_evaluation, virtual_tokens, without_adapters
from rlhf_hw.rollout.decode_attention import attention_in_fp32
from rlhf_hw.rollout.engine import (
    Rollout,
    Sampling,
    assemble,
    check_prompts,
    end_token_ids,
    within_context,
)
from rlhf_hw.rollout.kv_cache import PreallocatedCache
from rlhf_hw.rollout.sampling import sample_tokens, score_processors, uniforms

#: kinds of attention whose whole past may lie in the cache: a window is then the mask's
_KINDS = {"full_attention", "sliding_attention"}
#: rotary embeddings whose frequencies change once the longest row of a batch is long. Which row that is depends on what
#: is prefilled together and on what has ended; and some models' `generate` then works all keys out again.
ROPE_OF_THE_BATCH = {"dynamic", "longrope"}


class CompactEngine:
    """Rollouts by a decode loop that drops ended rows.

    Args:
        tokenizer: of the policy.
        shapes: the widths of a rollout; only that of whole sequences acts.
        batch_size: prompts answered together; None takes all at once (the fastest, if memory allows).
        options: the backend's.
    """

    def __init__(
        self,
        tokenizer: Any,
        shapes: RolloutShapes | None = None,
        batch_size: int | None = None,
        options: DecodingOptions | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.shapes = shapes or RolloutShapes()
        self.batch_size = batch_size
        self.options = options or DecodingOptions()

    @torch.no_grad()
    def generate(
        self, policy: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: a prompt is empty, prompt and answer together are longer than the model's context, or the model
                is none that this engine can run.
        """
        reason = why_not_compact(policy)
        if reason is not None:
            raise UserError(f"--rollout_engine compact: {reason}; use generate")
        check_prompts(policy, prompts, sampling)
        ends = end_token_ids(self.tokenizer, policy) | sampling.end_tokens
        responses: list[list[int]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        step = self.batch_size or len(prompts)
        in_fp32 = self.options.attention_in_fp32 and attends_by_interface(without_adapters(policy))
        attention = attention_in_fp32 if in_fp32 else nullcontext
        with in_evaluation(policy):
            for start in range(0, len(prompts), step):
                part = by_length[start : start + step]
                batch = _Batch(
                    policy, [prompts[i] for i in part], sampling.max_new_tokens, self.tokenizer, attention
                )
                theirs = [seeds[i] for i in part]
                drawn = self._answer(batch, sampling, theirs, sorted(ends))
                for i, answer in zip(part, drawn, strict=True):
                    responses[i] = answer
        sequences = within_context(policy, self.shapes.sequences)
        return assemble(
            prompts, responses, ends, self.tokenizer.pad_token_id, sequences.pad_length, policy.device
        )

    def _answer(
        self, batch: _Batch, sampling: Sampling, seeds: Sequence[int], ends: list[int]
    ) -> list[list[int]]:
        """The tokens drawn for each row; beyond its first end token a row may go on."""
        device, steps = batch.tokens.device, sampling.max_new_tokens
        processors = score_processors(sampling, ends, self.tokenizer.pad_token_id, device)
        uniform = uniforms(seeds, steps, device) if sampling.temperature > 0 else None
        end_ids = torch.tensor(ends, device=device)
        drawn = torch.full((len(seeds), steps), ends[0], device=device)
        ended = torch.zeros(len(seeds), dtype=torch.bool, device=device)
        logits = batch.prefill(self.options.prefill_tokens)
        for step in range(steps):
            scores = logits.float()
            for process in processors:
                scores = process(batch.seen, scores)
            rows = batch.rows
            tokens = scores.argmax(dim=-1) if uniform is None else sample_tokens(scores, uniform[rows, step])
            drawn[rows, step] = tokens
            if step == steps - 1:
                break
            ended |= (tokens[:, None] == end_ids).any(dim=1)
            if (step + 1) % self.options.check_every == 0 and bool(ended.any()):
                going = ~ended
                if not bool(going.any()):
                    break
                kept = batch.retain(going.tolist())
                tokens, ended = tokens[kept], ended[kept]
            logits = batch.decode(tokens)
        return drawn.tolist()


def why_not_compact(policy: Any) -> str | None:
    """Why this engine cannot answer with `policy`; None where it can."""
    if virtual_tokens(policy):
        return "its adapter puts virtual tokens before every row"
    model = without_adapters(policy)
    name, config = type(model).__name__, model.config
    if not any(base.__module__.startswith("transformers.models.") for base in type(model).__mro__):
        return f"{name} is code of its own and not transformers'"
    foreign = foreign_module(model)
    if foreign is not None:
        return f"the {foreign} in {name} is code of its own and not transformers'"
    kinds = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if kinds or getattr(model, "_is_stateful", False):
        return f"{name} keeps more of the past than keys and values"
    shared = getattr(config, "num_kv_shared_layers", 0)
    takes_a_cache = "past_key_values" in inspect.signature(type(model).forward).parameters
    if shared or not takes_a_cache or config.is_encoder_decoder or config.get_text_config() is not config:
        return f"{name} is not a plain decoder"
    if rope_kinds(config) & ROPE_OF_THE_BATCH:
        return f"{name} rotates all keys by the length of the longest row"
    return None


def rope_kinds(config: Any) -> set[str]:
    """The kinds of rotary embedding that `config` asks for, in the spelling of either transformers."""
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(config, name, None) or {}
        for part in (given, *given.values()):  # newer ones may be told by the kind of layer
            kind = part.get("rope_type", part.get("type")) if isinstance(part, dict) else None
            if kind is not None:
                found.add(kind)
    return found


class _Batch:
    """Prompts being answered by one model. Each slot holds a row that is still going.

    tokens, mask [slots, T]: left-padded prompts, then what is drawn; T = longest prompt + longest answer. rows [slots]:
    which row stands in which slot. `end`: the first column that is still empty. `attention`: what a decode step of the
    model runs in.
    """

    def __init__(
        self,
        policy: Any,
        prompts: Sequence[Sequence[int]],
        steps: int,
        tokenizer: Any,
        attention: Callable[[Any], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        device = policy.device
        self.model = without_adapters(policy)
        self.attention = attention
        self.accepted = set(inspect.signature(type(self.model).forward).parameters)
        self.lengths = [len(prompt) for prompt in prompts]
        self.prompt_width = self.end = max(self.lengths)
        size = (len(prompts), self.end + steps)
        tokens = torch.full(size, tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.ones(size, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens[i, self.end - len(prompt) : self.end] = torch.tensor(prompt, dtype=torch.long)
            mask[i, : self.end - len(prompt)] = 0
        self.tokens, self.mask = tokens.to(device), mask.to(device)
        #: what makes a column of a row into its position [slots, 1]
        self.shift = torch.tensor(self.lengths, device=device)[:, None] - self.end
        self.rows = torch.arange(len(prompts), device=device)
        self.cache = PreallocatedCache(*size)

    @property
    def first(self) -> int:
        """The first column in which a row still going has a token."""
        return self.prompt_width - max(self.lengths)

    @property
    def seen(self) -> torch.Tensor:
        """Prompts and what was drawn so far."""
        return self.tokens[:, self.first : self.end]

    def prefill(self, most_tokens: int) -> torch.Tensor:
        """Run the prompts, at most about `most_tokens` at a time; logits [slots, V] of the first token of each answer."""
        logits = []
        with _rows_laid_together(self.model.get_output_embeddings()):
            for start, stop in prefill_parts(self.lengths, most_tokens):
                rows, first = slice(start, stop), self.prompt_width - max(self.lengths[start:stop])
                self.cache.open(rows, first)
                mask = self.mask[rows, first : self.end]
                positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
                logits.append(self._run(self.tokens[rows, first : self.end], mask, positions))
        self.cache.show(slice(0, len(self.lengths)), self.first)
        return torch.cat(logits)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add a token [slots] to each row; logits [slots, V] of the next."""
        self.tokens[:, self.end] = tokens
        positions = self.shift + self.end
        self.end += 1
        with self.attention(self.model):
            return self._run(tokens[:, None], self.mask[:, self.first : self.end], positions)

    def retain(self, going: list[bool]) -> torch.Tensor:
        """Leave out the slots not `going`; the last ones take their places. Where [slots] each slot's row was before."""
        count = sum(going)
        movers = (slot for slot in range(count, len(going)) if going[slot])
        order = [slot if going[slot] else next(movers) for slot in range(count)]
        self.lengths = [self.lengths[slot] for slot in order]
        kept = torch.tensor(order, device=self.rows.device)
        moved = [slot for slot in range(count) if order[slot] != slot]
        if moved:
            targets = torch.tensor(moved, device=kept.device)
            self.cache.move(kept[targets], targets, self.first)
        self.cache.show(slice(0, count), self.first)
        self.tokens, self.mask, self.shift, self.rows = (
            part[kept] for part in (self.tokens, self.mask, self.shift, self.rows)
        )
        return kept

    def _run(self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": tokens, "attention_mask": mask, "past_key_values": self.cache}
        if "position_ids" in self.accepted:
            inputs["position_ids"] = positions
        if "logits_to_keep" in self.accepted:
            inputs["logits_to_keep"] = 1
        return self.model(**inputs, use_cache=True, return_dict=True).logits[:, -1]


@contextmanager
def _rows_laid_together(head: nn.Module) -> Iterator[None]:
    """Inside, what goes into the output head lies in one piece.

    The last places of several rows do not, and torch then multiplies row by row: on a CPU in bf16 with a copy of the head's
    weights for each row.
    """
    handle = head.register_forward_pre_hook(lambda _head, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def prefill_parts(lengths: Sequence[int], most_tokens: int) -> Iterator[tuple[int, int]]:
    """Rows (from, to) that run together, of `lengths` in descending order: at least one row, else within `most_tokens`."""
    start = 0
    while start < len(lengths):
        stop = min(len(lengths), start + max(1, most_tokens // lengths[start]))
        yield start, stop
        start = stop
