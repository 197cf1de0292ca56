"""transformers' continuous batching: the next prompt takes the place of a row that has ended, over a cache of pages.

What is transformers' are the queue, the cache and the attention over it. Ours are the tokens: its sampler draws all rows
from one stream of random numbers, so that an answer would depend on the rows around it. A logits processor is told which
rows it is asked for, draws each one's token from that row's own uniform number, and leaves no other possible.

Imported only where transformers has it (`rlhf_hw.compat.continuous_batching`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager, PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from backends.base import DecodingOptions
from backends.shapes import RolloutShapes
from rlhf_hw.errors import UserError
from rlhf_hw.models.unpadded import FAMILIES
from rlhf_hw.models.wrapping import foreign_module, in_evaluation, virtual_tokens, without_adapters
from rlhf_hw.rollout.compact import ROPE_OF_THE_BATCH, rope_kinds
from rlhf_hw.rollout.engine import (
    Rollout,
    Sampling,
    assemble,
    check_prompts,
    end_token_ids,
    within_context,
)
from rlhf_hw.rollout.sampling import leave_only, sample_tokens, shaping_processors, uniforms, without_ends

#: tokens of a row that lie together in the cache
PAGE = 32
#: tokens that run at a time under torch's own attention, which takes a mask of them times all places of the cache
TOKENS_UNDER_A_MASK = 512


class ContinuousEngine:
    """Rollouts by transformers' continuous batching.

    Args:
        tokenizer: of the policy.
        shapes: the widths of a rollout; only that of whole sequences acts.
        batch_size: rows that are answered at a time; None takes all at once.
        options: the backend's; of them `prefill_tokens` and `forked_random_numbers` act.
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
            UserError: a prompt is empty, prompt and answer together are longer than the model's context, keys and
                values do not fit into memory, or the model is none that this engine can run.
        """
        reason = why_not_continuous(policy)
        if reason is not None:
            raise UserError(f"--rollout_engine continuous: {reason}; use generate")
        check_prompts(policy, prompts, sampling)
        ends = end_token_ids(self.tokenizer, policy) | sampling.end_tokens
        drawing = _DrawnTokens(
            prompts, sampling, seeds, sorted(ends), self.tokenizer.pad_token_id, policy.device
        )
        # transformers seeds torch's global stream; what is trained afterwards must not depend on it
        with in_evaluation(policy), self.options.forked_random_numbers():
            responses = self._answer(policy, drawing)
        sequences = within_context(policy, self.shapes.sequences)
        return assemble(
            prompts, responses, ends, self.tokenizer.pad_token_id, sequences.pad_length, policy.device
        )

    def _answer(self, policy: Any, drawing: _DrawnTokens) -> list[list[int]]:
        prompts, steps = drawing.prompts, drawing.sampling.max_new_tokens
        config = GenerationConfig(do_sample=False, max_new_tokens=steps, eos_token_id=drawing.ends)
        rows, longest = min(self.batch_size or len(prompts), len(prompts)), max(map(len, prompts)) + steps
        decoder = _Decoder(without_adapters(policy), drawing)
        manager = ContinuousBatchingManager(decoder, config, self._batching(rows, longest, decoder.masked))
        manager.logit_processor.tensors_required = 1  # counted for transformers' own processors alone
        try:
            manager.warmup()  # makes the cache
        except MemoryError as error:
            raise UserError(
                f"--rollout_engine continuous: keys and values of {rows} rows of {longest} tokens do not fit into "
                f"memory ({error}); lower --batch_size or --output_max_length, or use generate"
            ) from None
        for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
            manager.add_request(
                list(prompts[i]), request_id=str(i), max_new_tokens=steps, eos_token_id=drawing.ends
            )
        # what the manager's own thread would do: here autocast reaches it, and an interrupt or error ends it
        batches = manager.batch_processor
        batches.cache.__class__ = _CacheOfOneType
        while batches.prepare_next_batch():
            batches._generation_step(decoder)
            batches.update_batch()
        answers: list[list[int]] = [[] for _ in prompts]
        for _ in prompts:
            found = manager.get_result(timeout=0)
            if found is None or found.error is not None:
                raise RuntimeError(f"continuous batching left a prompt unanswered: {found and found.error}")
            answers[int(found.request_id)] = found.generated_tokens
        return answers

    def _batching(self, rows: int, longest: int, masked: bool) -> ContinuousBatchingConfig:
        """Room for `rows` rows of `longest` tokens, whatever else a device has."""
        tokens = self.options.prefill_tokens
        return ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=rows * math.ceil(longest / PAGE),
            max_batch_tokens=max(rows, min(tokens, TOKENS_UNDER_A_MASK) if masked else tokens),
            max_requests_per_batch=rows,
            max_memory_percent=1.0,
            safety_margin=0.0,  # there is a place for every token of every row
            max_blocks_per_request=0,  # a kernel of FlashAttention that wants pages of 256 tokens
            allow_block_sharing=False,
            # the tokens are drawn by Python that runs at every step, and knows every token before it
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,  # the attention stays that of training
            seed=0,
        )


def why_not_continuous(policy: Any) -> str | None:
    """Why this engine cannot answer with `policy`; None where it can."""
    if virtual_tokens(policy):
        return "its adapter puts virtual tokens before every row"
    model = without_adapters(policy)
    name, config = type(model).__name__, model.config
    if config.model_type not in FAMILIES:
        return f"nothing is known of {name} over a paged cache"
    foreign = foreign_module(model)
    if foreign is not None:
        return f"the {foreign} in {name} is code of its own and not transformers'"
    attention = config._attn_implementation
    if attention != "sdpa" and not attention.startswith("flash_attention"):
        return f"the attention of {name} is {attention}, and a paged cache wants sdpa or FlashAttention"
    if rope_kinds(config) & ROPE_OF_THE_BATCH:
        return f"{name} rotates all keys by the length of the longest row"
    return None


class _Decoder:
    """A model as the manager of continuous batching asks for it: with our processor, and autocast's dtype for its cache."""

    _supports_flash_attn = False  # whether the manager may put it in the place of another attention

    def __init__(self, model: Any, drawing: _DrawnTokens) -> None:
        self.model, self.drawing = model, drawing
        self.config, self.device = model.config, model.device
        kind = model.device.type
        self.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
        self.masked = self.config._attn_implementation == "sdpa"
        self.keeps_logits = "logits_to_keep" in inspect.signature(type(model).forward).parameters

    def __call__(self, **batch: Any) -> Any:
        masks = batch["attention_mask"]
        if isinstance(masks, dict) and len(masks) == 1:  # not all decoders take one for each kind of layer
            batch["attention_mask"] = next(iter(masks.values()))
        return self.model(**batch)

    def eval(self) -> _Decoder:
        return self

    def _supports_logits_to_keep(self) -> bool:
        return self.keeps_logits

    def _get_logits_processor(self, _config: GenerationConfig) -> LogitsProcessorList:
        return LogitsProcessorList([self.drawing])


class _CacheOfOneType(PagedAttentionCache):
    """transformers' cache, which also takes states of another type: under autocast rotated keys are fp32, values are not."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().update(key_states.to(self.dtype), value_states.to(self.dtype), *args, **kwargs)


class _DrawnTokens(ContinuousBatchingLogitsProcessor):
    """Leaves the drawn token of each row alone possible; or the scores themselves, where answers are greedy.

    A request is named by the number of its prompt, and is at the step that its position says.
    """

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        ends: list[int],
        pad_token_id: int,
        device: torch.device,
    ) -> None:
        self.prompts, self.sampling, self.ends = prompts, sampling, ends
        self.pad_token_id, self.device = pad_token_id, device
        self.end_ids = torch.tensor(ends, device=device)
        self.shaping = shaping_processors(sampling, pad_token_id)
        drawn = sampling.temperature > 0
        self.uniform = uniforms(seeds, sampling.max_new_tokens, torch.device("cpu")) if drawn else None
        self.steps: list[int] = []
        self.seen: list[list[int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        """The uniform number of each row that is asked for a token now, in the guise of an int32."""
        states = [request.state for request in requests_with_new_token]
        rows = [int(state.request_id) for state in states]
        self.steps = [
            state.position_offset - len(self.prompts[row]) for state, row in zip(states, rows, strict=True)
        ]
        if self.sampling.repetition_ngram:
            self.seen = [state.initial_tokens + state.generated_tokens for state in states]
        if self.uniform is None:
            return torch.zeros(len(rows), dtype=torch.int32)
        return self.uniform[rows, self.steps].view(torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """scores [rows, V] → scores of which the drawn tokens' are the highest.

        Rows beyond those that were prepared are prompts that have been read in part; nobody takes their tokens.
        """
        count = len(self.steps)
        if not count:
            return scores
        asked = scores[:count]
        if self.sampling.min_new_tokens:
            early = [[step < self.sampling.min_new_tokens] for step in self.steps]
            asked = without_ends(asked, self.end_ids, torch.tensor(early, device=scores.device))
        seen = self._seen()
        for process in self.shaping:
            asked = process(seen, asked)
        if self.uniform is not None:
            asked = leave_only(asked, sample_tokens(asked, tensor_arg[:count].view(torch.float32)))
        return torch.cat([asked, scores[count:]])

    def _seen(self) -> torch.Tensor:
        """Prompts with what was drawn so far, left padded [rows, T]; T is 0 where no processor looks at them."""
        width = max(map(len, self.seen), default=0)
        padded = [[self.pad_token_id] * (width - len(row)) + row for row in self.seen]
        return torch.tensor(padded, dtype=torch.long, device=self.device)
