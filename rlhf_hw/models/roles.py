"""The roles of PPO (policy, value, reference) and how they share weights.

With LoRA one set of base weights can serve all of them (`shared_base.py`): the reference is the policy's base, with the
adapter it began from if it began from one; the value is a small head on the policy's trunk, or an adapter with a head.
Separate models take the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_hw.algorithms.kl import per_token_kl
from rlhf_hw.algorithms.losses import cross_entropy_sum, log_softmax_and_entropy, selective_log_softmax
from rlhf_hw.compat.activation_checkpointing import RecomputesActivations
from rlhf_hw.models.positions import (
    Selection,
    answer_positions,
    every_position,
    logits_at,
    next_token_positions,
)
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.shared_base import AdapterRole, SharedBase
from rlhf_hw.models.weights import load_weights_into, save_weights
from rlhf_hw.models.wrapping import is_lora, is_peft, lent_to, part_of_state

VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_DIRECTORY = "critic"


class TokenStatistics(NamedTuple):
    """One number for each of N response tokens of a batch, row by row, fp32: [N] each.

    N is the number of response tokens; or, where an answer width R is given, B·R, what lies beyond an answer's end
    meaning nothing. `entropy`: where it was asked for. `unsupervised_loss` (0-d): -log p in nats, summed over the
    unsupervised text that was given too.
    """

    logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor | None = None
    unsupervised_loss: torch.Tensor | None = None


class ValueHead(nn.Module):
    """A linear read-out of the state value from hidden states [..., H], in fp32; it starts at zero."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


def answer_tokens(response_mask: torch.Tensor, answer_width: int | None) -> tuple[Selection, Selection]:
    """(outputs that predict the answers' tokens, the tokens themselves); see `TokenStatistics` for their number."""
    if answer_width is None:
        return next_token_positions(response_mask), response_mask
    return answer_positions(response_mask, answer_width)


def token_logprobs(
    policy: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    temperature: float,
    answer_width: int | None = None,
) -> torch.Tensor:
    """Log-probabilities [N] of the response tokens (bool [B, T]) under softmax(logits / temperature)."""
    where, tokens = answer_tokens(response_mask, answer_width)
    logits = logits_at(policy, where, input_ids=input_ids, attention_mask=attention_mask).logits
    return selective_log_softmax(at_temperature(logits, temperature), input_ids[tokens])


def at_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """`logits` of the distribution that is sampled from; no copy where they are that already."""
    return logits if temperature == 1 else logits / temperature


def text_loss(policy: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Sum of -log p (nats) of every token but the first of each row of `input_ids` [B, L], without padding: 0-d."""
    batch, length = input_ids.shape
    where = every_position(batch, length - 1, input_ids.device)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return cross_entropy_sum(logits_at(policy, where, **inputs).logits, input_ids[:, 1:].reshape(-1))


class ActorCritic(RecomputesActivations, nn.Module):
    """The trained part of PPO: a policy, and its value function on the same trunk or in a model of its own.

    Args:
        policy: causal language model, PEFT or not.
        critic: separate value model; None puts a `ValueHead` on the policy's trunk.
        reference: frozen copy of the initial policy; None means "the policy's base", which needs PEFT.
            It is not a submodule: it is neither trained, nor saved, nor moved by the trainer.
        temperature: of the sampling distribution, whose log-probabilities these are.
        offload_reference: whether the reference is in the host's memory but for `reference_at_hand`.
        base: of the policy, where further adapters were put on it; made here where it is not given and `policy` is LoRA.
        reference_adapters: which of them are the reference, where that is no model of its own.
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: RewardModel | None,
        reference: nn.Module | None,
        temperature: float = 1.0,
        offload_reference: bool = False,
        base: SharedBase | None = None,
        reference_adapters: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.offload_reference = offload_reference
        self.policy = policy
        self.critic = critic
        self.value_head = None
        if critic is None:
            self.value_head = ValueHead(policy.get_output_embeddings().weight.shape[1])
        if reference is None and not is_peft(policy):
            raise ValueError("a policy without adapters needs a reference model of its own")
        if base is None and is_lora(policy):
            base = SharedBase(policy)
        self._base = (base,)  # in tuples, so that torch does not register what is in them
        self._reference = (reference,)
        self.reference_adapters = tuple(reference_adapters)
        self.temperature = temperature

    @property
    def reference(self) -> nn.Module | None:
        return self._reference[0]

    @property
    def base(self) -> SharedBase | None:
        return self._base[0]

    @property
    def config(self) -> Any:
        return self.policy.config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        response_mask: torch.Tensor,
        answer_width: int | None = None,
        unsupervised_ids: torch.Tensor | None = None,
        with_entropy: bool = False,
    ) -> TokenStatistics:
        """Log-probability (and entropy) of each response token and the value of the state before it.

        `input_ids`, `attention_mask` [B, T] right padded; `response_mask` [B, T] (bool) marks response tokens.
        `unsupervised_ids` [b, L]: text to model as well, in the same call, since data-parallel training wants one.
        """
        where, tokens = answer_tokens(response_mask, answer_width)
        logits, hidden = logits_at(self.policy, where, input_ids=input_ids, attention_mask=attention_mask)
        logits = at_temperature(logits, self.temperature)
        if self.critic is not None:
            values = self.critic.values_at(where, input_ids, attention_mask)
        else:
            assert self.value_head is not None
            values = self.value_head(hidden)
        entropy = None
        if with_entropy:
            logprobs, entropy = log_softmax_and_entropy(logits, input_ids[tokens])
        else:
            logprobs = selective_log_softmax(logits, input_ids[tokens])
        loss = None if unsupervised_ids is None else text_loss(self.policy, unsupervised_ids)
        return TokenStatistics(logprobs, values, entropy, loss)

    @torch.no_grad()
    def reference_logprobs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        response_mask: torch.Tensor,
        answer_width: int | None = None,
    ) -> torch.Tensor:
        """Log-probabilities [N] of the response tokens under the reference."""
        with self._as_reference() as model:
            return token_logprobs(
                model, input_ids, attention_mask, response_mask, self.temperature, answer_width
            )

    @torch.no_grad()
    def divergence(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        response_mask: torch.Tensor,
        answer_width: int | None = None,
        *,
        estimator: str,
    ) -> torch.Tensor:
        """KL terms [N] by an estimator that looks at whole distributions (`kl.NEEDS_LOGITS`)."""
        where, _ = answer_tokens(response_mask, answer_width)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits = logits_at(self.policy, where, **inputs).logits / self.temperature
        with self._as_reference() as model:
            reference = logits_at(model, where, **inputs).logits / self.temperature
        return per_token_kl(estimator, logits, reference)

    def reference_at_hand(self, device: torch.device) -> AbstractContextManager[None]:
        """Inside, a reference of its own is on `device`."""
        return lent_to(device, self.reference, offloaded=self.offload_reference)

    @contextmanager
    def _as_reference(self) -> Iterator[nn.Module]:
        if self.reference is not None:
            yield self.reference
        elif self.base is not None:
            with self.base.acting(self.reference_adapters):
                yield self.policy
        else:
            with self.policy.disable_adapter():
                yield self.policy

    # What the trainer asks of a model
    def value_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the value head, of the value model, or of its adapter and head."""
        if self.critic is not None:
            return self.critic.role_parameters()
        assert self.value_head is not None
        return self.value_head.parameters()

    def policy_parameters(self) -> list[nn.Parameter]:
        """The weights of the policy that train; a value adapter beside it is not the policy's."""
        others = {id(weight) for weight in self.value_parameters()}
        return [
            weight for weight in self.policy.parameters() if weight.requires_grad and id(weight) not in others
        ]

    def checkpointed_models(self) -> list[nn.Module]:
        return [self.policy] if self.critic is None else [self.policy, *self.critic.checkpointed_models()]

    def checkpointing_enabled(self) -> None:
        if self.base is not None:
            self.base.keep_roles_when_recomputing()

    # What is kept
    def save_pretrained(
        self, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Write the policy as a plain transformers or PEFT directory, and the value function beside it."""
        state = self.state_dict() if state_dict is None else state_dict
        save_weights(self.policy, directory, part_of_state(state, "policy."))
        if self.critic is not None:
            critic, folder = part_of_state(state, "critic."), Path(directory) / CRITIC_DIRECTORY
            if isinstance(self.critic, AdapterRole):
                self.critic.save_pretrained(folder, critic, part_of_state(state, "policy."))
            else:
                self.critic.save_pretrained(folder, state_dict=critic)
        else:
            head = {
                name: tensor.contiguous().cpu()
                for name, tensor in part_of_state(state, "value_head.").items()
            }
            save_file(head, Path(directory) / VALUE_HEAD_FILE)

    def load_weights(self, directory: str | Path) -> None:
        """Read back, to the bit, what `save_pretrained` wrote."""
        load_weights_into(self.policy, directory)
        if self.critic is not None:
            self.critic.load_weights(Path(directory) / CRITIC_DIRECTORY)
        else:
            assert self.value_head is not None
            self.value_head.load_state_dict(load_file(Path(directory) / VALUE_HEAD_FILE))
