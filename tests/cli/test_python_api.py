"""RLHF from Python, in a loop of one's own: what docs/python-api.md shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_hw import PPOTrainer, RLHFEngine
from rlhf_hw.errors import UserError


@pytest.fixture(scope="module")
def reward_dir(text_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as plain transformers saves one."""
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("reward")
    AutoModelForSequenceClassification.from_pretrained(text_llama_dir, num_labels=1).save_pretrained(
        directory
    )
    AutoTokenizer.from_pretrained(text_llama_dir).save_pretrained(directory)
    return directory


def test_ten_lines_train_a_policy_that_plain_transformers_loads(
    run: Callable[..., object], text_llama_dir: Path, reward_dir: Path, pairs_file: Path
) -> None:
    prompts = [json.loads(line)["question"] for line in pairs_file.read_text().splitlines()]
    engine = RLHFEngine(
        text_llama_dir,
        reward_dir,
        num_total_iters=3,
        batch_size=4,
        mini_batch_size=2,
        gradient_accumulation_steps=1,
        ppo_epochs=1,
        output_max_length=6,
        learning_rate=1e-3,
        full_finetune=True,
        bf16=False,
        init_value_with_reward=True,
        device="cpu",
    )
    trainer = PPOTrainer(engine)
    before = {name: tensor.clone() for name, tensor in engine.actor.state_dict().items()}
    for start in (0, 4, 8):
        experience = trainer.generate_experience(prompts[start : start + 4])
        assert [sample["prompt"] for sample in trainer.samples] == prompts[start : start + 4]
        policy_loss, value_loss = trainer.train_rlhf(experience)
        assert (policy_loss, value_loss) == (
            trainer.metrics["policy/loss"],
            trainer.metrics["value/loss"],
        )
        assert trainer.metrics["ppo/update"] == start // 4 + 1
    assert engine.trainer.lr_scheduler.get_last_lr() == [1e-3] * 2  # constant by default
    trainer.save("out")
    loaded = AutoModelForCausalLM.from_pretrained("out").state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in loaded.items())
    for name, tensor in engine.actor.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    # the value function began as the reward model, and is saved beside the policy
    head, critic = (
        load_file(Path(directory) / "model.safetensors")["score.weight"]
        for directory in (reward_dir, "out/critic")
    )
    assert 0 < (head - critic).abs().max() < 0.1
    with pytest.raises(UserError, match="prompt 1: empty"):
        trainer.generate_experience(["How many?", "", "a", "b"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1e-3}, "--learning_rat: unknown flag; did you mean --learning_rate"),
        ({"batch_size": 3, "mini_batch_size": 2}, "--batch_size: 3 is not a multiple"),
        ({"kl_estimator": "k9"}, "--kl_estimator: got 'k9'"),
    ],
)
def test_a_wrong_setting_is_an_exception_that_names_it(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RLHFEngine("nowhere", "nothing", num_total_iters=1, **settings)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, rlhf_hw; rlhf_hw.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
