"""bf16 training: frozen weights in bf16, trained ones in fp32, and the arithmetic of PPO in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_runs import ppo_settings, ppo_trainer, reward_trainer, roles, sft_trainer, with_lora

from rlhf_hw.models.roles import ActorCritic


def lora_on_bf16(labels: int | None = None) -> Any:
    """As the loaders make it: a score head stays in fp32."""
    model = tiny_model(labels=labels).to(torch.bfloat16)
    if labels is not None:
        model.score.to(torch.float32)
    return with_lora(model, "CAUSAL_LM" if labels is None else "SEQ_CLS")


def trained_dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_bf16_base_with_an_fp32_adapter_trains(tmp_path: Path, stage: str) -> None:
    if stage == "sft":
        trainer = sft_trainer(tmp_path, lora_on_bf16(), bf16=True, max_steps=20)
    else:
        trainer = reward_trainer(tmp_path, lora_on_bf16(labels=1), bf16=True, max_steps=20)
    assert trained_dtypes(trainer.model) == {torch.float32}
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_ppo_in_bf16_starts_at_ratio_one_and_keeps_its_numbers_in_fp32(tmp_path: Path, kind: str) -> None:
    model = ActorCritic(lora_on_bf16(), None, None) if kind == "lora" else roles(separate=True)
    settings = ppo_settings(ppo_epochs=1, mini_batch_size=8, steps=8)
    trainer = ppo_trainer(tmp_path, model, settings, bf16=True)
    assert trained_dtypes(model) == {torch.float32}
    trainer.train()
    (first,) = [row for row in trainer.state.log_history if "loss" in row]
    assert first["policy/ratio"] == pytest.approx(1, abs=0.02)
    assert first["objective/kl"] == pytest.approx(0, abs=0.05)
    experience = trainer.experience
    for tensor in (experience.logprobs, experience.values, experience.advantages, experience.returns):
        assert tensor.dtype is torch.float32
