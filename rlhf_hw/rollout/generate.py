"""The reference engine: transformers' `generate()`. Runs on every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from backends.base import GenerationOptions
from backends.shapes import RolloutShapes
from rlhf_hw.models.wrapping import adapter_state, in_evaluation, virtual_tokens, without_adapters
from rlhf_hw.rollout.engine import (
    Rollout,
    Sampling,
    assemble,
    check_prompts,
    end_token_ids,
    within_context,
)
from rlhf_hw.rollout.sampling import InverseCDFProcessor, score_processors, uniforms


class GenerateEngine:
    """Rollouts by `policy.generate()`, left padded, many prompts at a time.

    Args:
        tokenizer: of the policy.
        shapes: the widths of a rollout.
        batch_size: prompts a call of `generate`; None takes all at once (the fastest, if memory allows).
        options: the backend's: how `generate` runs on its device.
    """

    def __init__(
        self,
        tokenizer: Any,
        shapes: RolloutShapes | None = None,
        batch_size: int | None = None,
        options: GenerationOptions | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.shapes = shapes or RolloutShapes()
        self.batch_size = batch_size
        self.options = options or GenerationOptions()

    @torch.no_grad()
    def generate(
        self, policy: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: a prompt is empty, or prompt and answer together are longer than the model's context.
        """
        check_prompts(policy, prompts, sampling)
        responses: list[list[int]] = [[] for _ in prompts]
        with in_evaluation(policy):
            for part in self._batches(policy, prompts):
                chosen, theirs = [prompts[i] for i in part], [seeds[i] for i in part]
                for i, answer in zip(
                    part, self._generate_batch(policy, chosen, sampling, theirs), strict=True
                ):
                    responses[i] = answer
        ends = end_token_ids(self.tokenizer, policy) | sampling.end_tokens
        sequences = within_context(policy, self.shapes.sequences)
        return assemble(
            prompts, responses, ends, self.tokenizer.pad_token_id, sequences.pad_length, policy.device
        )

    def _batches(self, policy: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Which prompts are answered together: `batch_size` at a time.

        PEFT puts virtual tokens before the padding, and no row knows its positions then: with them, prompts of one
        length go together, so that there is no padding.
        """
        groups = [list(range(len(prompts)))]
        if virtual_tokens(policy):
            lengths = sorted({len(prompt) for prompt in prompts})
            groups = [[i for i, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]
        step = self.batch_size or len(prompts)
        return [group[start : start + step] for group in groups for start in range(0, len(group), step)]

    def _generate_batch(
        self, policy: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[int]]:
        device = policy.device
        width = max(len(prompt) for prompt in prompts)
        if not virtual_tokens(policy):
            width = within_context(policy, self.shapes.prompts, sampling.max_new_tokens).pad_length(width)
        input_ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, prompt in enumerate(prompts):
            input_ids[i, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            attention_mask[i, width - len(prompt) :] = 1
        ends = sorted(end_token_ids(self.tokenizer, policy) | sampling.end_tokens)
        config = self._config(policy, sampling, ends)
        processors = LogitsProcessorList(
            score_processors(sampling, ends, self.tokenizer.pad_token_id, device)
        )
        if sampling.temperature > 0:
            processors.append(InverseCDFProcessor(uniforms(seeds, sampling.max_new_tokens, device)))
        model = without_adapters(policy)
        state = (adapter_state(policy), input_ids.shape, sampling.max_new_tokens)
        with as_generation_config(policy, config), self.options.around(model, state):
            sequences = policy.generate(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                generation_config=config,
                logits_processor=processors,
                **self.options.arguments,
            )
        return sequences[:, width : width + sampling.max_new_tokens].tolist()

    def _config(self, policy: Any, sampling: Sampling, ends: list[int]) -> GenerationConfig:
        """A config of our own, of the model's class, without what PPO knows nothing of."""
        return type(without_adapters(policy).generation_config)(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=None if self.options.ignore_eos else ends,
            bos_token_id=self.tokenizer.bos_token_id,
            use_cache=True,
            **self.options.config,
        )


@contextmanager
def as_generation_config(policy: Any, config: GenerationConfig) -> Iterator[None]:
    """Put `config` in the place of the model's own meanwhile.

    `generate()` fills what a given config leaves at its default from the model's own, and a chat model's own may
    sample, penalise repetition or forbid words.
    """
    model = without_adapters(policy)
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
