"""Making experience: rollout → score → log-probabilities → KL-shaped reward → advantages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from backends.shapes import RolloutShapes
from rlhf_hw.algorithms.advantages import gae
from rlhf_hw.algorithms.kl import (
    NEEDS_LOGITS,
    AdaptiveKLController,
    FixedKLController,
    ProportionalKLController,
    per_token_kl,
)
from rlhf_hw.algorithms.masked import Moments, combine, masked_moments, masked_sum, whiten_with
from rlhf_hw.algorithms.rewards import (
    RunningMoments,
    apply_missing_eos_penalty,
    clip_scores,
    normalise_scores,
    shape_rewards,
)
from rlhf_hw.errors import UserError
from rlhf_hw.models.reward_model import RewardStatistics
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.rollout.engine import Rollout, RolloutEngine, Sampling
from rlhf_hw.trainers.metrics import PhaseTimer
from rlhf_hw.trainers.prompts import PromptBatch
from rlhf_hw.trainers.scoring import Scorer

if TYPE_CHECKING:
    from rlhf_hw.arguments.ppo import PPOArguments


@dataclass
class Experience:
    """What one process learns from in one update. B answers; R = longest answer; all fp32 but masks.

    mask [B, R]: real answer tokens. learnt [B, R]: those of answers that are long enough to learn from. logprobs,
    values, advantages, returns [B, R]: under the policy and critic that wrote the answers; zero where masked.
    """

    rollout: Rollout
    mask: torch.Tensor
    learnt: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def lengths(self) -> torch.Tensor:
        """Tokens of each answer [B] that are learnt from."""
        return self.learnt.sum(dim=1)

    def minibatch(self, rows: Sequence[int], shapes: RolloutShapes) -> dict[str, torch.Tensor]:
        """The given rows as inputs of the loss, trimmed to the longest of them where shapes may vary."""
        sequence, answer = widths(self.rollout, rows, shapes)
        index = torch.as_tensor(rows, device=self.mask.device)
        return {
            "input_ids": self.rollout.input_ids[index, :sequence],
            "attention_mask": self.rollout.attention_mask[index, :sequence],
            "response_mask": self.rollout.response_mask[index, :sequence],
            "mask": self.mask[index, :answer],
            "learnt": self.learnt[index, :answer],
            "old_logprobs": self.logprobs[index, :answer],
            "old_values": self.values[index, :answer],
            "advantages": self.advantages[index, :answer],
            "returns": self.returns[index, :answer],
        }


def widths(rollout: Rollout, rows: Sequence[int], shapes: RolloutShapes) -> tuple[int, int]:
    """Columns that `rows` get: (of the whole sequences, of the answers)."""
    if shapes.answer_width is not None:
        return rollout.input_ids.shape[1], shapes.answer_width
    index = torch.as_tensor(rows, device=rollout.input_ids.device)
    longest = shapes.sequences.pad_length(int(rollout.attention_mask[index].sum(dim=1).max()))
    return min(longest, rollout.input_ids.shape[1]), int(rollout.response_lengths[index].max())


def to_rows(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One number per real token [N], or per place [B·R], as [B, R]; zero where `mask` is false. Differentiable."""
    if len(flat) == mask.numel():
        return torch.where(mask, flat.view(mask.shape), 0.0)
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


#: share of the average score that stays in each update (DeepSpeed-Chat's)
SCORES_EMA_DECAY = 0.9


def decayed(average: float, value: float) -> float:
    """The exponential average of scores, one update later."""
    return SCORES_EMA_DECAY * average + (1 - SCORES_EMA_DECAY) * value


def kl_controller(settings: PPOArguments) -> FixedKLController:
    """What steers the KL coefficient, as the flags have it."""
    if not settings.adap_kl_ctrl:
        return FixedKLController(settings.init_kl_coef)
    if settings.k_beta is not None:
        return ProportionalKLController(settings.init_kl_coef, settings.kl_target, settings.k_beta)
    return AdaptiveKLController(settings.init_kl_coef, settings.kl_target, settings.kl_horizon)


def token_ids(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """The ids of `--truncate_tokens`.

    Raises:
        UserError: a text is not one token of this tokenizer.
    """
    known, found = tokenizer.get_vocab(), []
    for text in texts:
        ids = [known[text]] if text in known else tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id != known.get(text):
            raise UserError(
                f"--truncate_tokens: {text!r} is {len(ids)} tokens of this tokenizer, or unknown to it; name one token"
            )
        found.append(ids[0])
    return found


class ExperienceMaker:
    """Turns prompts into `Experience`, and steers the KL coefficient.

    Args:
        settings: the PPO flags.
        tokenizer: of the policy, to show answers as text.
        engine, scorer: draw answers and score them.
        accelerator: gathers statistics over processes.
        autocast: makes the context in which models run.
        timer: told what each phase took.
        shapes: the widths of a rollout.
        statistics: by which raw scores are normalised, if they are.
    """

    def __init__(
        self,
        settings: PPOArguments,
        tokenizer: Any,
        engine: RolloutEngine,
        scorer: Scorer,
        accelerator: Any,
        autocast: Callable[[], AbstractContextManager[Any]],
        timer: PhaseTimer,
        shapes: RolloutShapes,
        statistics: RewardStatistics | None = None,
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.engine = engine
        self.scorer = scorer
        self.accelerator = accelerator
        self.autocast = autocast
        self.timer = timer
        self.shapes = shapes
        self.statistics = statistics
        self.running_scores = RunningMoments()
        self.scores_ema: float | None = None
        self.kl_controller = kl_controller(settings)
        self.ends = token_ids(settings.truncate_tokens or (), tokenizer)
        self.sampling = Sampling(
            max_new_tokens=settings.output_max_length,
            min_new_tokens=settings.output_min_length,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            end_tokens=frozenset(self.ends),
        )

    @torch.no_grad()
    def generate_experience(
        self, model: ActorCritic, prompts: PromptBatch
    ) -> tuple[Experience, dict[str, float], list[dict[str, Any]]]:
        """One rollout with all that the update needs; (experience, metrics over all processes, samples)."""
        settings = self.settings
        with self.timer.phase("rollout"):
            rollout = self._roll_out(model, prompts)
        with self.timer.phase("score"), self.autocast():
            scores = self.scorer(rollout, prompts.rows)
            shaped = self._shape_scores(scores, rollout)
        with self.timer.phase("forward"), model.reference_at_hand(rollout.input_ids.device):
            mask = rollout.response_mask_padded(self.shapes.answer_width)
            logprobs, values, entropy, kl = self._statistics(model, rollout, mask)
        with self.timer.phase("advantage"):
            coef = self.kl_controller.kl_coef
            rewards = shape_rewards(shaped, kl, mask, coef)
            if settings.whiten_rewards:
                rewards = self._whiten(rewards, mask, shift_mean=False)
            raw_advantages, returns = gae(rewards, values, mask, settings.gamma, settings.lam)
            learnt = mask & (rollout.response_lengths >= settings.min_answer_tokens)[:, None]
            advantages = (
                self._whiten(raw_advantages, learnt) if settings.whiten_advantages else raw_advantages
            )
            experience = Experience(rollout, mask, learnt, logprobs, values, advantages, returns)
            metrics = self._metrics(experience, scores, shaped, kl, entropy, raw_advantages)
            metrics["objective/kl_coef"] = coef
            self.kl_controller.update(metrics["objective/kl"], len(scores) * self.accelerator.num_processes)
        return experience, metrics, self._samples(prompts, rollout, scores, kl, mask)

    @torch.no_grad()
    def evaluate(self, model: ActorCritic, prompts: PromptBatch) -> torch.Tensor:
        """[B, 4]: raw score, KL (nats an answer), length and whether it ended, of fresh answers."""
        rollout = self._roll_out(model, prompts)
        mask = rollout.response_mask_padded(self.shapes.answer_width)
        with self.autocast():
            scores = self.scorer(rollout, prompts.rows)
        with model.reference_at_hand(mask.device):
            _, _, _, kl = self._statistics(model, rollout, mask)
        columns = (scores, masked_sum(kl, mask, dim=1), rollout.response_lengths, rollout.ended)
        return torch.stack([column.float() for column in columns], dim=1)

    # Steps
    def _roll_out(self, model: ActorCritic, prompts: PromptBatch) -> Rollout:
        with self.autocast():
            return self.engine.generate(model.policy, prompts.input_ids, self.sampling, prompts.seeds)

    def _shape_scores(self, scores: torch.Tensor, rollout: Rollout) -> torch.Tensor:
        """Normalise, scale, clip and shift raw scores [B], and punish answers that never ended."""
        settings = self.settings
        if settings.normalize_scores and self.statistics is not None:
            scores = normalise_scores(scores, self.statistics.mean, self.statistics.std)
        if settings.use_score_scaling:
            self.running_scores.update(self._global_moments(masked_moments(scores)))
            shift = self.running_scores.mean if settings.use_score_norm else 0.0
            scores = (scores - shift) / self.running_scores.std
        if settings.score_clip is not None:
            scores = clip_scores(scores, settings.score_clip)
        scores = scores - settings.reward_baseline
        scores = apply_missing_eos_penalty(scores, rollout.ended, settings.missing_eos_penalty or 0.0)
        if self.ends:
            scores = torch.where(self._came_to_an_end(rollout), scores, settings.penalty_reward_value)
        return scores

    def _came_to_an_end(self, rollout: Rollout) -> torch.Tensor:
        """Which answers [B] (bool) end by one of `--truncate_tokens`, with more than `--truncate_after` before it."""
        ends = torch.tensor(self.ends, device=rollout.input_ids.device)
        by_one = (rollout.last_tokens[:, None] == ends).any(dim=1)
        after = self.settings.truncate_after
        return by_one if after is None else by_one & (rollout.response_lengths - 1 > after)

    def _statistics(
        self, model: ActorCritic, rollout: Rollout, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, values, entropies and KL terms of all answer tokens, [B, R] each.

        Worked out in the precision of training and not kept from the sampler: decoding with a cache differs
        from the training forward by enough to move the first ratio away from 1.
        """
        was_training = model.training
        model.eval()
        logprobs, values, entropy, kl = (torch.zeros(mask.shape, device=mask.device) for _ in range(4))
        for rows in self._forward_batches(rollout):
            sequence, answer = widths(rollout, rows.tolist(), self.shapes)
            part = mask[rows, :answer]
            inputs = (
                rollout.input_ids[rows, :sequence],
                rollout.attention_mask[rows, :sequence],
                rollout.response_mask[rows, :sequence],
                self.shapes.answer_width,
            )
            with self.autocast():
                found = model(*inputs, with_entropy=True)
                if self.settings.kl_estimator in NEEDS_LOGITS:
                    flat_kl = model.divergence(*inputs, estimator=self.settings.kl_estimator)
                else:
                    reference = model.reference_logprobs(*inputs)
                    flat_kl = per_token_kl(self.settings.kl_estimator, found.logprobs, reference)
            assert found.entropy is not None
            for whole, flat in (
                (logprobs, found.logprobs),
                (values, found.values),
                (entropy, found.entropy),
                (kl, flat_kl),
            ):
                whole[rows, :answer] = to_rows(flat.float(), part)
        model.train(was_training)
        return logprobs, values, entropy, kl

    def _forward_batches(self, rollout: Rollout) -> Iterator[torch.Tensor]:
        """Row numbers in batches of about equal length; no gradients are kept, so four times a minibatch fits."""
        by_length = rollout.attention_mask.sum(dim=1).argsort(stable=True)
        yield from by_length.split(4 * self.settings.mini_batch_size)

    # Statistics over all processes
    def _global_moments(self, local: Moments) -> Moments:
        rows = self.accelerator.gather(torch.stack(tuple(local))[None])
        return combine([Moments(*row) for row in rows])

    def _whiten(self, values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        """Whitened over the `mask` of all processes; where that holds less than two tokens, nothing is learnt anyway."""
        moments = self._global_moments(masked_moments(values, mask))
        return whiten_with(values, mask, moments, shift_mean) if moments.count > 1 else values

    def _metrics(
        self,
        experience: Experience,
        scores: torch.Tensor,
        shaped: torch.Tensor,
        kl: torch.Tensor,
        entropy: torch.Tensor,
        raw_advantages: torch.Tensor,
    ) -> dict[str, float]:
        mask, rollout = experience.mask, experience.rollout
        lengths = rollout.response_lengths.float()
        kl_sums = masked_sum(kl, mask, dim=1)
        non_score = -self.kl_controller.kl_coef * kl_sums
        per_answer = {
            "objective/kl": kl_sums,
            "objective/scores": scores,
            "objective/scores_shaped": shaped,
            "objective/non_score_reward": non_score,
            "objective/rlhf_reward": shaped + non_score,
            "response/length_mean": lengths,
            "response/eos_rate": rollout.ended.float(),
        }
        if self.settings.min_answer_tokens:
            per_answer["response/too_short"] = (experience.lengths() == 0).float()
        means = torch.stack([value.float().mean() for value in per_answer.values()])
        metrics = dict(zip(per_answer, self._mean(means).tolist(), strict=True))
        mean = metrics["objective/scores"]
        self.scores_ema = mean if self.scores_ema is None else decayed(self.scores_ema, mean)
        metrics["objective/scores_ema"] = self.scores_ema
        metrics["response/length_min"] = -float(self._max(-lengths.min()))
        metrics["response/length_max"] = float(self._max(lengths.max()))
        metrics["objective/scores_std"] = self._std(masked_moments(scores))
        metrics["objective/entropy"] = float(self._global_moments(masked_moments(entropy, mask)).mean)
        returns = self._global_moments(masked_moments(experience.returns, mask))
        errors = self._global_moments(masked_moments(experience.returns - experience.values, mask))
        advantages = self._global_moments(masked_moments(raw_advantages, mask))
        values = self._global_moments(masked_moments(experience.values, mask))
        metrics |= {
            "returns/mean": float(returns.mean),
            "returns/std": self._std(returns, gathered=True),
            "advantages/mean": float(advantages.mean),
            "advantages/std": self._std(advantages, gathered=True),
            "value/mean": float(values.mean),
            "value/explained_variance": 1.0
            - float(errors.squared_deviations) / max(float(returns.squared_deviations), 1e-12),
            "response/tokens": float(returns.count),
        }
        return metrics

    def _mean(self, local: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(local, reduction="mean")

    def _max(self, local: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(local[None]).max()

    def _std(self, moments: Moments, gathered: bool = False) -> float:
        whole = moments if gathered else self._global_moments(moments)
        return float(whole.variance.sqrt()) if whole.count > 1 else 0.0

    def _samples(
        self,
        prompts: PromptBatch,
        rollout: Rollout,
        scores: torch.Tensor,
        kl: torch.Tensor,
        mask: torch.Tensor,
    ) -> list[dict[str, Any]]:
        texts = rollout.texts(self.tokenizer)
        sums = masked_sum(kl, mask, dim=1).tolist()
        rows = zip(prompts.rows, texts, scores.tolist(), sums, rollout.ended.tolist(), strict=True)
        return [
            {"prompt": row["prompt"], "response": text, "score": score, "kl": kl_sum, "ended": ended}
            for row, text, score, kl_sum, ended in rows
        ]

    # Kept in checkpoints
    def state_dict(self) -> dict[str, Any]:
        """What the next update needs to know of the ones before."""
        return {
            "kl_controller": self.kl_controller.state_dict(),
            "running_scores": self.running_scores.state_dict(),
            "scores_ema": self.scores_ema,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.running_scores.load_state_dict(state["running_scores"])
        self.scores_ema = state["scores_ema"]
