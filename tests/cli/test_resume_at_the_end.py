"""A run that had reached its last step ends at it again when it is resumed: not a step more, and nothing lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_resuming_at_the_last_step_trains_no_further(
    run: Callable[..., Any], request: pytest.FixtureRequest, stage: str
) -> None:
    """At the end of an epoch (PPO), and within one."""
    flags = [*request.getfixturevalue(f"{stage}_flags"), "--output_dir", "out"]
    if stage == "ppo":
        Path("scores.py").write_text(
            "def score(prompts, responses, **_):\n    return [*map(len, responses)]\n"
        )
        flags += ["--reward_function", "scores:score", "--save_freq", 1]
    else:
        flags += ["--save_strategy", "steps", "--save_steps", 1]
    assert run(stage, *flags).status == 0
    out = Path("out")
    checkpoints, metrics = sorted(out.glob("checkpoint-*")), (out / "metrics.jsonl").read_text()
    weights = load_file(out / "adapter_model.safetensors")
    outcome = run(stage, *flags, "--resume_from_checkpoint")
    assert outcome.status == 0, outcome.err
    assert "nothing is left to train: " in outcome.err
    assert "not to be a single sample" not in outcome.err
    assert sorted(out.glob("checkpoint-*")) == checkpoints
    training = [row for row in metrics.splitlines() if '"loss"' in row]
    resumed = (out / "metrics.jsonl").read_text()
    assert training == [row for row in resumed.splitlines() if '"loss"' in row]
    for name, tensor in load_file(out / "adapter_model.safetensors").items():
        assert tensor.equal(weights[name]), name
