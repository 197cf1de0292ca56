"""A model is told by what its files hold, not by its path or their times."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_hw.models import fingerprint
from rlhf_hw.models.fingerprint import model_fingerprint


@pytest.fixture
def model(tiny_llama_dir: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def change_weights(file: Path) -> None:
    """As a training would: every weight a little."""
    trained = {name: tensor + 1e-3 for name, tensor in load_file(file).items()}
    save_file(trained, file, metadata={"format": "pt"})


def test_a_copy_is_the_same_model_and_one_trained_again_is_not(model: Path, tmp_path: Path) -> None:
    before = model_fingerprint(str(model))
    copy = shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / "metrics.jsonl").write_text("{}")  # what a training leaves beside its weights
    (copy / "checkpoint-1").mkdir()
    assert model_fingerprint(str(copy)) == before
    change_weights(copy / "model.safetensors")
    assert model_fingerprint(str(copy)) != before
    assert (copy / "model.safetensors").stat().st_size == (model / "model.safetensors").stat().st_size


def test_a_large_file_is_told_by_blocks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "_BLOCK", 64)
    before = model_fingerprint(str(model))
    assert model_fingerprint(str(model)) == before
    change_weights(model / "model.safetensors")
    assert model_fingerprint(str(model)) != before


def test_an_adapter_is_told_by_its_base_too(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    save_file({"lora": torch.ones(2)}, adapter / "adapter_model.safetensors")
    before = model_fingerprint(str(adapter))
    change_weights(model / "model.safetensors")
    base_changed = model_fingerprint(str(adapter))
    change_weights(adapter / "adapter_model.safetensors")
    assert len({before, base_changed, model_fingerprint(str(adapter))}) == 3
