"""From answers to advantages: each number against one worked out by hand from the same answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import word_tokenizer
from tiny_runs import ppo_settings, ppo_trainer, prompt_rows, roles, word_score

from backends.shapes import DynamicShapes, RolloutShapes
from rlhf_hw.models.reward_model import RewardStatistics
from rlhf_hw.models.roles import ActorCritic
from rlhf_hw.rollout.engine import Rollout, Sampling, StopReason
from rlhf_hw.rollout.generate import GenerateEngine
from rlhf_hw.trainers.experience import Experience, to_rows, widths


def moved(model: ActorCritic) -> ActorCritic:
    """Away from the reference, and with values that are not zero."""
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def experience(
    tmp_path: Path, model: ActorCritic, scorer: Any = word_score, statistics: Any = None, **settings: Any
) -> tuple[Experience, dict[str, float], Any]:
    trainer = ppo_trainer(tmp_path, model, ppo_settings(**settings), scorer, statistics=statistics)
    prompts = trainer.prompts.batch(0, 0, 1, trainer.settings.batch_size)
    found, metrics, _ = trainer.maker.generate_experience(model, prompts)
    return found, metrics, trainer


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize(
    "shape", [{"adapter": True}, {"separate": True}, {"adapter": True, "separate": True}]
)
@pytest.mark.parametrize("estimator", ["kl", "k3", "full"])
def test_experience_is_what_one_row_at_a_time_gives(
    tmp_path: Path, architecture: str, shape: dict[str, bool], estimator: str
) -> None:
    model = moved(roles(architecture, **shape))
    found, _, trainer = experience(
        tmp_path,
        model,
        kl_estimator=estimator,
        whiten_advantages=False,
        mini_batch_size=1,
        init_kl_coef=0.3,
        lam=0.9,
    )
    for row in range(8):
        ids = found.rollout.input_ids[row : row + 1, : int(found.rollout.attention_mask[row].sum())]
        answer = found.rollout.response_mask[row : row + 1, : ids.shape[1]]
        begin, length = ids.shape[1] - int(answer.sum()), int(answer.sum())
        logp = model.policy(ids).logits[0, begin - 1 : -1].log_softmax(-1)
        if model.reference is not None:
            ref = model.reference(ids).logits[0, begin - 1 : -1].log_softmax(-1)
        else:
            with model.policy.disable_adapter():
                ref = model.policy(ids).logits[0, begin - 1 : -1].log_softmax(-1)
        tokens = ids[0, begin:, None]
        chosen, ref_chosen = logp.gather(1, tokens)[:, 0], ref.gather(1, tokens)[:, 0]
        d = chosen - ref_chosen
        kl = {"kl": d, "k3": (-d).exp() - 1 + d, "full": (logp.exp() * (logp - ref)).sum(-1)}[estimator]
        values = model(ids, torch.ones_like(ids), answer).values
        rewards = -0.3 * kl
        rewards[-1] += word_score(found.rollout, [])[row]
        advantage, advantages = 0.0, []
        for t in reversed(range(length)):
            following = float(values[t + 1]) if t + 1 < length else 0.0
            advantage = float(rewards[t] + following - values[t]) + 0.9 * advantage
            advantages.insert(0, advantage)
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(found.logprobs[row, :length], chosen, **close)
        torch.testing.assert_close(found.values[row, :length], values, **close)
        torch.testing.assert_close(found.advantages[row, :length], torch.tensor(advantages), **close)
        torch.testing.assert_close(found.returns[row, :length], torch.tensor(advantages) + values, **close)
        for tensor in (found.logprobs, found.values, found.advantages, found.returns):
            assert not tensor[row, length:].any()
    assert trainer.model.training is model.training


def test_the_full_divergence_and_the_sampled_one_agree_on_average(tmp_path: Path) -> None:
    model = moved(roles(adapter=True))
    options = {"batch_size": 512, "mini_batch_size": 64, "output_max_length": 2}
    sampled = experience(tmp_path, model, kl_estimator="kl", **options)[1]["objective/kl"]
    whole = experience(tmp_path, model, kl_estimator="full", **options)[1]["objective/kl"]
    assert whole > 0.01
    assert sampled == pytest.approx(whole, rel=0.3)


def test_whitened_advantages_have_mean_zero_and_variance_one_over_real_tokens(tmp_path: Path) -> None:
    found, metrics, _ = experience(tmp_path, moved(roles(adapter=True)), batch_size=16)
    real = found.advantages[found.mask]
    assert real.mean().item() == pytest.approx(0, abs=1e-5)
    assert real.var().item() == pytest.approx(1, rel=1e-4)
    raw, _, _ = experience(tmp_path, moved(roles(adapter=True)), batch_size=16, whiten_advantages=False)
    assert metrics["advantages/std"] == pytest.approx(raw.advantages[raw.mask].std().item(), rel=1e-4)
    assert torch.equal(raw.returns, found.returns)  # the critic's target is not whitened


def test_shares_of_several_processes_are_whitened_as_the_whole(tmp_path: Path) -> None:
    """With a gather that stands in for two other processes, whose values are known."""
    _, _, trainer = experience(tmp_path, roles(adapter=True))
    torch.manual_seed(0)
    shares = [torch.randn(4, 5) * (i + 1) + i for i in range(3)]
    masks = [torch.arange(5) < torch.tensor([[5], [1], [3], [2 + i]]) for i in range(3)]
    from rlhf_hw.algorithms.masked import masked_moments, masked_whiten

    whole = masked_whiten(torch.cat(shares), torch.cat(masks))
    moments = torch.stack(
        [torch.stack(tuple(masked_moments(v, m))) for v, m in zip(shares, masks, strict=True)]
    )
    trainer.maker.accelerator = type("Three", (), {"gather": staticmethod(lambda _: moments)})
    parts = [trainer.maker._whiten(v, m) for v, m in zip(shares, masks, strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


# --- scores ----------------------------------------------------------------------------------------------------


def fixed(scores: Sequence[float]) -> Any:
    return lambda rollout, rows: torch.tensor(scores)


def shaped(
    tmp_path: Path, scores: Sequence[float], ended: Sequence[bool], statistics: Any = None, **settings: Any
) -> Any:
    """Scores after shaping, of answers that ended or not."""
    trainer = ppo_trainer(
        tmp_path,
        roles(adapter=True),
        ppo_settings(batch_size=4, **settings),
        fixed(scores),
        statistics=statistics,
    )
    reasons = torch.tensor([StopReason.EOS if end else StopReason.LENGTH for end in ended])
    nothing = torch.zeros(4, 1)
    return trainer.maker._shape_scores(
        torch.tensor(scores), Rollout(nothing, nothing, nothing, reasons)
    ).tolist(), trainer


def test_scores_are_normalised_then_clipped_then_shifted_then_punished(tmp_path: Path) -> None:
    """An order that shows: 9 normalises to 4, is held to 1.5, loses the baseline 0.25, and 0.5 for not ending."""
    found, _ = shaped(
        tmp_path,
        [9.0, 9.0, 1.0, -9.0],
        [True, False, True, False],
        RewardStatistics(mean=1.0, std=2.0, count=10),
        normalize_scores=True,
        score_clip=1.5,
        reward_baseline=0.25,
        missing_eos_penalty=0.5,
    )
    assert found == [1.25, 0.75, -0.25, -2.25]


def test_scores_are_left_alone_where_nothing_is_asked(tmp_path: Path) -> None:
    found, _ = shaped(tmp_path, [9.0, -9.0, 1.0, 0.5], [False] * 4, RewardStatistics(1.0, 2.0, 10))
    assert found == [9.0, -9.0, 1.0, 0.5]


@pytest.mark.parametrize("norm", [False, True])
def test_running_moments_scale_scores_by_all_seen_so_far(tmp_path: Path, norm: bool) -> None:
    first, second = [1.0, 2.0, 3.0, 6.0], [0.0, 10.0, 4.0, 2.0]
    found, trainer = shaped(tmp_path, first, [True] * 4, use_score_scaling=True, use_score_norm=norm)
    seen = torch.tensor(first)
    shift = float(seen.mean()) if norm else 0.0
    assert found == pytest.approx(((seen - shift) / seen.std()).tolist(), rel=1e-5)
    nothing = torch.zeros(4, 1)
    rollout = Rollout(nothing, nothing, nothing, torch.zeros(4))
    again = trainer.maker._shape_scores(torch.tensor(second), rollout)
    seen = torch.tensor(first + second)
    shift = float(seen.mean()) if norm else 0.0
    assert again.tolist() == pytest.approx(((torch.tensor(second) - shift) / seen.std()).tolist(), rel=1e-5)


def test_metrics_describe_the_answers(tmp_path: Path) -> None:
    scores = [0.5, -1.0, 2.0, 0.25]
    model = moved(roles(adapter=True))
    found, metrics, _ = experience(
        tmp_path,
        model,
        fixed(scores),
        batch_size=4,
        init_kl_coef=0.3,
        missing_eos_penalty=1.0,
        whiten_advantages=False,
    )
    rollout, lengths = found.rollout, found.lengths().float()
    reference = to_rows(
        model.reference_logprobs(rollout.input_ids, rollout.attention_mask, rollout.response_mask), found.mask
    )
    kl = (found.logprobs - reference).sum(1).mean().item()
    punished = torch.tensor(scores) - (~rollout.ended).float()
    expected = {
        "objective/scores": sum(scores) / 4,
        "objective/scores_std": torch.tensor(scores).std().item(),
        "objective/scores_shaped": punished.mean().item(),
        "objective/kl": kl,
        "objective/kl_coef": 0.3,
        "objective/non_score_reward": -0.3 * kl,
        "objective/rlhf_reward": punished.mean().item() - 0.3 * kl,
        "response/length_mean": lengths.mean().item(),
        "response/length_min": lengths.min().item(),
        "response/length_max": lengths.max().item(),
        "response/eos_rate": rollout.ended.float().mean().item(),
        "response/tokens": lengths.sum().item(),
        "returns/mean": found.returns[found.mask].mean().item(),
        "returns/std": found.returns[found.mask].std().item(),
        "value/mean": found.values[found.mask].mean().item(),
        "value/explained_variance": 1
        - ((found.returns - found.values)[found.mask].var() / found.returns[found.mask].var()).item(),
        "advantages/mean": found.advantages[found.mask].mean().item(),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert 0 < metrics["objective/entropy"] < torch.tensor(96.0).log()


# --- layout ----------------------------------------------------------------------------------------------------


def test_a_minibatch_is_trimmed_to_its_own_longest_row(tmp_path: Path) -> None:
    found, _, _ = experience(tmp_path, moved(roles(adapter=True)), output_max_length=12)
    lengths = found.rollout.attention_mask.sum(1)
    shortest = lengths.argsort()[:2].tolist()
    batch = found.minibatch(shortest, RolloutShapes())
    assert batch["input_ids"].shape == (2, int(lengths[shortest].max()))
    assert batch["mask"].shape == (2, int(found.lengths()[shortest].max()))
    assert batch["mask"].sum() == batch["response_mask"].sum() == found.lengths()[shortest].sum()
    assert (
        widths(found.rollout, shortest, RolloutShapes(sequences=DynamicShapes(10_000)))[0]
        == found.rollout.input_ids.shape[1]
    )


def test_spreading_tokens_over_rows_keeps_their_order_and_gradient() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    flat = torch.arange(1.0, 7.0, requires_grad=True)
    rows = to_rows(flat, mask)
    assert rows.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    (rows * torch.arange(9.0).view(3, 3)).sum().backward()
    assert flat.grad.tolist() == [0, 1, 3, 6, 7, 8]


def test_log_probabilities_are_those_the_sampler_drew_with(tmp_path: Path) -> None:
    """Under temperature: the ratio starts from the distribution that wrote the answers."""
    model = moved(roles(temperature=0.5))
    rows = prompt_rows(4)
    rollout = GenerateEngine(word_tokenizer()).generate(
        model.policy, list(rows["input_ids"]), Sampling(6, temperature=0.5), range(4)
    )
    found = model(rollout.input_ids, rollout.attention_mask, rollout.response_mask).logprobs
    drawn = []
    for row in range(4):
        ids = rollout.input_ids[row, : int(rollout.attention_mask[row].sum())]
        begin = len(rows[row]["input_ids"])
        for t in range(begin, len(ids)):
            logits = model.policy(ids[None, :t]).logits[0, -1]
            drawn.append((logits / 0.5).log_softmax(-1)[ids[t]])
    torch.testing.assert_close(found, torch.stack(drawn), rtol=1e-4, atol=1e-4)
