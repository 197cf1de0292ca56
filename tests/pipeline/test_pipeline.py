"""What a pipeline's words mean, and how its table reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_hw.pipeline.settings import model_name, parse_pipeline, short_name
from rlhf_hw.pipeline.steps import step_of, with_fitting_critic
from rlhf_hw.pipeline.table import duration, tables

SEED = [
    "--actor-model",
    "facebook/opt-1.3b",
    "--reward-model",
    "facebook/opt-350m",
    "--deployment-type",
    "single_gpu",
]


@pytest.mark.parametrize(("given", "model", "short"), [
    ("facebook/opt-1.3b", "facebook/opt-1.3b", "1.3b"),
    ("1.3b", "facebook/opt-1.3b", "1.3b"),
    ("opt-350m", "facebook/opt-350m", "350m"),
    ("runs/base", "runs/base", "base"),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
])  # fmt: skip
def test_models_by_name_size_and_path(given: str, model: str, short: str) -> None:
    assert (model_name(given), short_name(given)) == (model, short)


def test_zero_stages_become_the_steps_own_flags() -> None:
    settings = parse_pipeline([*SEED, "--actor-zero-stage", "3", "--reward-zero-stage", "2"])
    sft, reward, ppo = (" ".join(step_of(settings, number).words) for number in (1, 2, 3))
    assert "--deepspeed --zero_stage 3" in sft
    assert "--deepspeed --zero_stage 2" in reward
    assert "--deepspeed --zero_stage 3 --critic_zero_stage 2" in ppo
    settings = parse_pipeline([*SEED, "--actor-zero-stage", "0"])
    assert "deepspeed --zero" not in " ".join(step_of(settings, 1).words)


def test_a_critic_starts_from_the_reward_model_only_where_both_read_the_same_tokens(tmp_path: Path) -> None:
    settings = parse_pipeline([*SEED, "--output-dir", str(tmp_path)])
    step = step_of(settings, 3)
    for folder in ("actor-models/1.3b", "reward-models/350m"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tokenizer.json").write_text("one")
    assert with_fitting_critic(settings, step) == step
    (tmp_path / "reward-models/350m/tokenizer.json").write_text("other")
    assert with_fitting_critic(settings, step).words[-2:] == ("--init_value_with_reward", "false")
    for more in (["--preset", "none"], ["--ppo.init_value_with_reward", "false"]):
        told = parse_pipeline([*SEED, "--output-dir", str(tmp_path), *more])
        assert with_fitting_critic(told, step_of(told, 3)) == step_of(told, 3)


def test_the_seeds_data_set_unless_other_data_is_named() -> None:
    assert "--dataset_name Dahoas/rm-static" in " ".join(step_of(parse_pipeline(SEED), 1).words)
    settings = parse_pipeline([*SEED, "--sft.train_file", "mine.jsonl"])
    assert "Dahoas/rm-static" not in " ".join(step_of(settings, 1).words)
    assert "Dahoas/rm-static" in " ".join(step_of(settings, 2).words)


def test_the_table_of_seed_001() -> None:
    """A100-40G at $1.13 an hour, OPT-1.3B with OPT-350M: about 8.5 h, 1028 s and 5 h 48 min."""
    found = {
        "epochs": 5.0,
        "perplexity": 1.84511,
        "reward_average_score": 9.7032,
        "reward_accuracy": 0.63624,
        "average_reward": 11.125,
    }
    text = tables("1.3b", {1: 8.5 * 3600, 2: 1028, 3: 5.8 * 3600}, found, 1.13)
    assert "| 1.3b | 8h30m (5)       | 17m08s | 5h48m  | 14h35m | 16.48 |" in text
    assert (
        "| 1.3b | 1.84511             | 9.70320                | 0.63624           | 11.12500                |"
        in text
    )
    nothing = tables("6.7b", {1: 10.0}, {}, None)
    assert "| 6.7b | 10.0s           | -      | -      | 10.0s | -    |" in nothing


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (59.94, "59.9s"), (60, "1m00s"), (3600, "1h00m"), (20891, "5h48m")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
