"""The passes of the stages, run on fake models by the functions that train: what they keep is what training keeps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_hw.algorithms.kl import NEEDS_LOGITS, per_token_kl
from rlhf_hw.algorithms.losses import pairwise_reward_loss
from rlhf_hw.estimate.attention import rows_apart
from rlhf_hw.estimate.fakes import materialise
from rlhf_hw.estimate.live_bytes import CACHE, GRADIENTS, Bytes, LiveBytes
from rlhf_hw.estimate.trace import counted, ones
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.roles import ActorCritic, text_loss
from rlhf_hw.models.shared_base import AdapterRole
from rlhf_hw.models.wrapping import without_adapters
from rlhf_hw.rollout.kv_cache import PreallocatedCache
from rlhf_hw.rollout.sampling import InverseCDFProcessor, sample_tokens
from rlhf_hw.trainers.minibatch import minibatch_loss

if TYPE_CHECKING:
    from rlhf_hw.arguments.ppo import PPOArguments


@dataclass(frozen=True)
class Manner:
    """How passes run. autocast: "bf16", "fp16" or "no". accumulates: whether gradients of earlier micro-batches are there.

    rows_apart: whether decoders run on real tokens alone, where they can. keeps_casts: whether autocast may keep a weight
    that it has cast for a second use.
    """

    autocast: str = "no"
    gradient_checkpointing: bool = False
    accumulates: bool = False
    rows_apart: bool = False
    keeps_casts: bool = True

    @contextmanager
    def context(self, *models: nn.Module) -> Iterator[None]:
        """In which whole sequences go through `models`."""
        apart = models if self.rows_apart and not self.gradient_checkpointing else ()
        with rows_apart(apart), self.precision():
            yield

    def precision(self) -> AbstractContextManager[Any]:
        dtype = torch.float16 if self.autocast == "fp16" else torch.bfloat16
        on = self.autocast != "no"
        return torch.autocast("cpu", dtype=dtype, enabled=on, cache_enabled=self.keeps_casts)


def trained(
    live: LiveBytes,
    model: nn.Module,
    decoders: Iterable[nn.Module],
    manner: Manner,
    loss: Callable[[], torch.Tensor],
) -> dict[Any, Bytes]:
    """Forward and backward pass of a micro-batch; where it is not the first of its step, onto gradients that are there."""
    model.train()
    if manner.gradient_checkpointing:
        _checkpoint(model)
    if manner.accumulates:
        for weight in model.parameters():
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight)
                live.count_as(GRADIENTS, [weight.grad])
    live.restart()
    live.mark("forward")
    with manner.context(*decoders):
        total = loss()
    live.mark("backward")
    total.backward()
    return live.found()


def _checkpoint(model: nn.Module) -> None:
    # random numbers are not put back: there are none in fake tensors
    kwargs = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs)
    else:
        model.gradient_checkpointing_enable(kwargs)


def sft_step(policy: Any, rows: int, length: int, manner: Manner) -> Mapping[Any, Bytes]:
    """A micro-batch [rows, length], every token of which is learnt."""
    with counted({"policy": policy}, vocabulary_of(policy)) as live:
        ids = ones(rows, length)
        return trained(live, policy, [policy], manner, lambda: text_loss(policy, ids))


def sft_evaluation(policy: Any, rows: int, length: int, manner: Manner) -> Mapping[Any, Bytes]:
    """The same without gradients."""
    with counted({"policy": policy}, vocabulary_of(policy)) as live, torch.no_grad(), manner.context(policy):
        policy.eval()
        text_loss(policy, ones(rows, length))
        return live.found()


def reward_step(model: RewardModel, pairs: int, length: int, every_token: bool, manner: Manner) -> Any:
    """A micro-batch of `pairs` pairs, [2 · pairs, length]."""

    def loss() -> torch.Tensor:
        scores = model(ids, mask, every_token=every_token)
        return pairwise_reward_loss(scores[:pairs], scores[pairs:]).sum()

    with counted({"reward": model.model}, vocabulary_of(model.model)) as live:
        ids, mask = ones(2 * pairs, length), ones(2 * pairs, length)
        return trained(live, model, [model.inner], manner, loss)


def reward_pass(model: RewardModel, rows: int, length: int, manner: Manner) -> Mapping[Any, Bytes]:
    """Scores of [rows, length] by a model of its own, or by adapters on a base."""
    with counted({"reward": _decoder(model)}, vocabulary_of(_decoder(model))) as live, torch.no_grad():
        _move_head(model)
        model.eval()
        ids, mask = ones(rows, length), ones(rows, length)
        with manner.context(model.inner):
            model(ids, mask)
        return live.found()


def _decoder(model: RewardModel) -> Any:
    return model.base.model if isinstance(model, AdapterRole) else model.model


def _move_head(model: Any) -> None:
    """Make a head fake as well that is part of no decoder."""
    if isinstance(model, AdapterRole):
        materialise(model)


@dataclass(frozen=True)
class Lengths:
    """Of a PPO update, in tokens: longest prompt, longest answer, and what they are padded to together."""

    prompt: int
    answer: int
    sequence: int


def rollout(
    policy: Any, rows: int, lengths: Lengths, manner: Manner, read_at_once: int | None
) -> Mapping[Any, Bytes]:
    """Prompts are read, and the last token of their answers is drawn: with the cache at its longest.

    By the decode loop of our own, whose cache is made once, and which reads so many tokens of prompts at a time; None: by
    transformers' `generate`.
    """
    vocabulary = vocabulary_of(policy)
    forward = inspect.signature(without_adapters(policy).forward).parameters
    options = {"use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in forward else {})}
    prompt, held = lengths.prompt, lengths.prompt + lengths.answer
    with counted({"policy": policy}, vocabulary) as live, torch.no_grad(), manner.precision():
        policy.eval()
        live.cache_length = held
        cache: Any = None if read_at_once is None else PreallocatedCache(rows, held)
        first = rows if read_at_once is None else min(rows, max(1, read_at_once // prompt))
        if cache is not None:  # the rest of the prompts later, into the cache that the first part made
            cache.open(slice(0, first), 0)
        ids, mask = ones(first, prompt), ones(first, prompt)
        read = policy(input_ids=ids, attention_mask=mask, past_key_values=cache, **options)
        found = live.found()
        if cache is None:
            del read
            ids, mask = ones(rows, held - 1), ones(rows, held - 1)
            read = policy(input_ids=ids, attention_mask=mask, **options)
            cache = read.past_key_values
        else:
            for layer in cache.layers:
                layer.end = held - 1
            cache.show(slice(0, rows), 0)
        del read
        live.rest_as(CACHE)
        live.restart()
        live.entries = 2
        uniform = ones(rows, lengths.answer, dtype=torch.float32)
        drawn = policy(
            input_ids=ones(rows, 1), attention_mask=ones(rows, held), past_key_values=cache, **options
        )
        scores = drawn.logits[:, -1].to(copy=True, dtype=torch.float32)
        if read_at_once is not None:
            sample_tokens(scores, uniform[:, 0])
        else:
            InverseCDFProcessor(uniform)(ids, scores)
        return {**{("prompt", name): there for name, there in found.items()}, **live.found()}


def statistics(
    model: ActorCritic,
    parts: Mapping[str, nn.Module],
    rows: int,
    lengths: Lengths,
    settings: PPOArguments,
    manner: Manner,
) -> Mapping[Any, Bytes]:
    """Log-probabilities, values and KL terms of `rows` sequences, as `ExperienceMaker` works them out."""
    with counted(parts, vocabulary_of(model.policy)) as live, torch.no_grad():
        _move_heads(model)
        model.eval()
        inputs = _inputs(rows, lengths)
        with manner.context(*parts.values()):
            found = model(*inputs, lengths.answer, with_entropy=True)
            if settings.kl_estimator in NEEDS_LOGITS:
                model.divergence(*inputs, lengths.answer, estimator=settings.kl_estimator)
            else:
                reference = model.reference_logprobs(*inputs, lengths.answer)
                per_token_kl(settings.kl_estimator, found.logprobs, reference)
        return live.found()


def ppo_step(
    model: ActorCritic,
    parts: Mapping[str, nn.Module],
    rows: int,
    lengths: Lengths,
    settings: PPOArguments,
    manner: Manner,
    unsupervised: int = 0,
) -> Mapping[Any, Bytes]:
    """A micro-batch of `rows` answers; with `unsupervised` tokens a row of text beside it."""
    with counted(parts, vocabulary_of(model.policy)) as live:
        _move_heads(model)
        ids, mask, response = _inputs(rows, lengths)
        numbers = {
            name: torch.zeros(rows, lengths.answer)
            for name in ("old_logprobs", "old_values", "advantages", "returns")
        }
        masks = {name: ones(rows, lengths.answer, dtype=torch.bool) for name in ("mask", "learnt")}
        batch = {"input_ids": ids, "attention_mask": mask, "response_mask": response, **masks, **numbers}
        if unsupervised:
            batch["unsupervised_ids"] = ones(rows, unsupervised)

        def loss() -> torch.Tensor:
            found = minibatch_loss(model, batch, settings, lengths.answer)
            text = found.unsupervised
            return found.total if text is None else found.total + text

        return trained(live, model, parts.values(), manner, loss)


def _inputs(rows: int, lengths: Lengths) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (rows, lengths.sequence)
    return ones(*shape), ones(*shape), ones(*shape, dtype=torch.bool)


def _move_heads(model: ActorCritic) -> None:
    """Make the value head fake as well, which is no decoder."""
    if model.value_head is not None:
        materialise(model.value_head)
    _move_head(model.critic)


def vocabulary_of(model: Any) -> int:
    """Entries of a model's logits."""
    return int(without_adapters(model).config.vocab_size)
