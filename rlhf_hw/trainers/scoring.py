"""What an answer is worth: by a reward model, or by any Python function."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rlhf_hw.data.collate import pad_rows
from rlhf_hw.data.tokenize import answered
from rlhf_hw.errors import UserError
from rlhf_hw.models.reward_model import RewardModel
from rlhf_hw.models.wrapping import in_evaluation, lent_to
from rlhf_hw.rollout.engine import Rollout, rows_where


class Scorer(Protocol):
    """Scores the answers of a rollout."""

    def __call__(self, rollout: Rollout, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Scores [B], fp32, on the rollout's device. `rows` are the data set's rows (`prompt` as text, …)."""
        ...


class RewardModelScorer:
    """Scores by a reward model.

    Args:
        model: the reward model, in evaluation mode, on the device.
        policy_tokenizer: turns the rollout's tokens into text, where the reward model reads text.
        reward_tokenizer: the reward model's own tokenizer; None when it is the policy's: then tokens go over as they
            are. Otherwise the answer's text is tokenised anew, apart from its prompt's, as in reward modelling.
        batch_size: rows a forward pass.
        pad_length: the backend's shape policy.
        offloaded: whether the model is in the host's memory while it is not asked.
    """

    def __init__(
        self,
        model: RewardModel,
        policy_tokenizer: Any,
        reward_tokenizer: Any | None = None,
        batch_size: int = 16,
        pad_length: Callable[[int], int] = lambda n: n,
        offloaded: bool = False,
    ) -> None:
        self.model = model
        self.offloaded = offloaded
        self.policy_tokenizer = policy_tokenizer
        self.reward_tokenizer = reward_tokenizer
        self.pad_token_id = (reward_tokenizer or policy_tokenizer).pad_token_id
        self.batch_size = batch_size
        self.pad_length = pad_length

    @torch.no_grad()
    def __call__(self, rollout: Rollout, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        sequences = self._sequences(rollout, rows)
        self._check_context(max(map(len, sequences)))
        context = getattr(self.model.config, "max_position_embeddings", None)
        pad_length = (lambda longest: min(self.pad_length(longest), context)) if context else self.pad_length
        scores = torch.empty(len(sequences), dtype=torch.float32, device=rollout.input_ids.device)
        by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        with lent_to(scores.device, self.model, offloaded=self.offloaded), in_evaluation(self.model.inner):
            for start in range(0, len(by_length), self.batch_size):
                part = by_length[start : start + self.batch_size]
                batch = pad_rows([sequences[i] for i in part], self.pad_token_id, pad_length)
                scores[part] = self.model(*(tensor.to(scores.device) for tensor in batch))
        return scores

    def _sequences(self, rollout: Rollout, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        if self.reward_tokenizer is None:
            return rows_where(rollout.input_ids, rollout.attention_mask)
        texts = rollout.texts(self.policy_tokenizer)
        return answered(rows, texts, rollout.ended.tolist(), self.reward_tokenizer)

    def _check_context(self, longest: int) -> None:
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context and longest > context:
            raise UserError(
                f"--reward_model_name: prompt and answer come to {longest} of its tokens, its context is {context}; lower "
                "--output_max_length or --max_prompt_length"
            )


class FunctionScorer:
    """Scores by `function(prompts, responses)`: lists of texts in, one number each out.

    A function that takes more (say `chosen`, or `**columns`) gets the data set's columns of these names as lists.
    """

    def __init__(self, function: Callable[..., Sequence[float]], tokenizer: Any, name: str) -> None:
        self.function = function
        self.tokenizer = tokenizer
        self.name = name
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        for given in ("prompts", "responses"):
            if given not in named and not self._takes_all:
                raise UserError(
                    f"--reward_function {name}: has no parameter {given}; define it as function(prompts, responses)"
                )
        self._columns = [column for column in named if column not in ("prompts", "responses")]
        self._needed = [
            column for column in self._columns if named[column].default is inspect.Parameter.empty
        ]

    def __call__(self, rollout: Rollout, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        absent = [column for column in self._needed if column not in rows[0]]
        if absent:
            raise UserError(
                f"--reward_function {self.name}: wants {', '.join(absent)}; the data has the columns {', '.join(rows[0])}"
            )
        wanted = [name for name in rows[0] if name in self._columns or (self._takes_all and name != "prompt")]
        columns = {name: [row[name] for row in rows] for name in wanted}
        prompts = [row["prompt"] for row in rows]
        values = self.function(prompts=prompts, responses=rollout.texts(self.tokenizer), **columns)
        return self._checked(values, len(rows)).to(rollout.input_ids.device)

    def _checked(self, values: Any, expected: int) -> torch.Tensor:
        try:
            scores = torch.as_tensor(values, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--reward_function {self.name}: returned {type(values).__name__} ({error}); return one number for each "
                "answer"
            ) from error
        if scores.shape != (expected,):
            raise UserError(
                f"--reward_function {self.name}: returned shape {list(scores.shape)} for {expected} answers; return one "
                "number for each answer"
            )
        for i, score in enumerate(scores.tolist()):
            if not math.isfinite(score):
                raise UserError(
                    f"--reward_function {self.name}: returned {score} for answer {i}; scores must be finite"
                )
        return scores.detach()


def import_function(spec: str) -> Callable[..., Any]:
    """The function named by "package.module:function"; modules of the working directory are found too.

    Raises:
        UserError: the name is malformed, the module cannot be imported, or it has no such function.
    """
    module_name, separator, function_name = spec.partition(":")
    if not (module_name and separator and function_name):
        raise UserError(f"--reward_function {spec}: write it as package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"--reward_function {spec}: cannot import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"--reward_function {spec}: {module_name} has no function {function_name}")
    return function


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every text the same ids, told by vocabulary and a probing text."""
    probe = "Human: Wie geht's?  It's 3.14 o'clock,\n\tnaïve 你好 🙂 end."
    return one.get_vocab() == other.get_vocab() and one(probe)["input_ids"] == other(probe)["input_ids"]
