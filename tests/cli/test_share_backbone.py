"""`--share_backbone`: which roles of PPO stand on one set of base weights, and that it changes no number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from run_results import metrics
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.cli import ppo_models
from rlhf_hw.models.adapter_files import Chain
from rlhf_hw.models.base_sharing import Sharing
from rlhf_hw.models.load import LoadOptions, load_reward_model

Train = Callable[..., Path]
Run = Callable[..., Any]
PROBE = torch.tensor([[5, 17, 80, 200, 41]])


@pytest.fixture
def stages(trained: Train, sft_flags: list[object], reward_flags: list[object]) -> tuple[Path, Path]:
    """Supervised fine-tuning and a reward model on its adapter, both with LoRA, as the commands leave them."""
    sft = trained("sft", *sft_flags, output="sft")
    reward = trained("reward", *reward_flags, "--model_name_or_path", sft, output="reward")
    return sft, reward


def progress(directory: Path) -> list[dict[str, float]]:
    """What was found in each update, without what it took."""
    rows = [row for row in metrics(directory) if "objective/kl" in row]
    parts = ("objective/", "policy/", "value/", "returns/", "advantages/", "response/", "loss", "grad_norm")
    return [{name: row[name] for name in row if name.startswith(parts)} for row in rows]


def test_one_base_for_all_roles_gives_the_numbers_of_a_model_each(
    stages: tuple[Path, Path], run: Run, ppo_flags: list[object], text_llama_dir: Path
) -> None:
    sft, reward = stages
    flags = [*ppo_flags, "--model_name", sft, "--reward_model_name", reward, "--init_value_with_reward"]
    together = run("ppo", *flags, "--share_backbone", "True", "--output_dir", "together")
    assert together.status == 0, together.err
    for line in (
        "base weights: one copy a process; policy, reference, value, reward share one",
        f"policy: goes on from the adapter {sft}",
        "reference: the policy's base with the adapter it began from; value: an adapter of its own",
        f"reward: {reward}, an adapter on the policy's base",
    ):
        assert line in together.err
    apart = run("ppo", *flags, "--share_backbone", "false", "--output_dir", "apart")
    assert "base weights: 4 copies a process; reference apart: --share_backbone false" in apart.err
    found, expected = progress(Path("together")), progress(Path("apart"))
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    assert found[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    for file in ("adapter_model.safetensors", "critic/adapter_model.safetensors"):
        ours, theirs = load_file(Path("together") / file), load_file(Path("apart") / file)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-3)

    # what is written stands on the base itself, and plain PEFT loads it
    assert Chain.of("together") == Chain(str(text_llama_dir), ("together",))
    assert torch.isfinite(AutoPeftModelForCausalLM.from_pretrained("together")(PROBE).logits).all()
    start = load_file(sft / "adapter_model.safetensors")
    trained_on = load_file("together/adapter_model.safetensors")
    assert start.keys() == trained_on.keys()
    assert any(not torch.equal(start[name], trained_on[name]) for name in start)
    critic = load_reward_model("together/critic", LoadOptions(), 0).eval()
    before = load_reward_model(str(reward), LoadOptions(), 0).eval()
    mask = torch.ones_like(PROBE)
    assert 0 < (critic(PROBE, mask) - before(PROBE, mask)).abs().item() < 5


def test_a_new_adapter_stands_on_the_one_that_the_policy_is(
    trained: Train, run: Run, sft_flags: list[object], ppo_flags: list[object]
) -> None:
    """Another rank was asked for: then the first adapter stays as it is, below."""
    sft = trained("sft", *sft_flags, output="sft")
    Path("flat.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    flags = [*ppo_flags, "--model_name", sft, "--lora_rank", 3, "--reward_function", "flat:score"]
    outcome = run("ppo", *flags, "--output_dir", "out")
    assert outcome.status == 0, outcome.err
    assert "base weights: one copy a process; policy, reference share one" in outcome.err
    assert {t.shape[0] for n, t in load_file("out/adapter_model.safetensors").items() if "_A" in n} == {3}
    assert Chain.of("out").adapters == (str(sft), "out")
    found = progress(Path("out"))
    assert found[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(found[1]["objective/kl"]) > 1e-4


def test_every_weight_is_trained_from_adapters_where_that_is_asked_for(
    text_llama_dir: Path, lora_reward_dir: Path, workplace: Path, run: Run, ppo_flags: list[object]
) -> None:
    """Policy and value start from LoRA directories; what is written are whole models, moved in every matrix."""
    base = AutoModelForCausalLM.from_pretrained(text_llama_dir)
    peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(workplace / "sft")
    flags = [*ppo_flags, "--model_name", workplace / "sft", "--tokenizer_name", text_llama_dir]
    flags += ["--reward_model_name", lora_reward_dir, "--init_value_with_reward", "--full_finetune"]
    outcome = run("ppo", *flags, "--steps", 4, "--output_dir", "out")
    assert outcome.status == 0, outcome.err
    start = load_file(text_llama_dir / "model.safetensors")
    for directory in ("out", "out/critic"):
        trained_on = load_file(f"{directory}/model.safetensors")
        matrices = [name for name in trained_on if name in start and "_proj" in name]
        assert len(matrices) >= 7
        assert not any(torch.equal(trained_on[name], start[name]) for name in matrices)
    head = load_file("out/critic/model.safetensors")["score.weight"]
    before = load_file(lora_reward_dir / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert not torch.equal(head, before)


def test_a_frozen_policy_is_refused_in_one_line(
    run: Run, ppo_flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose own code freezes it."""
    load = ppo_models.load_policy
    monkeypatch.setattr(ppo_models, "load_policy", lambda *args: load(*args).requires_grad_(False))
    Path("flat.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    flags = [*ppo_flags, "--full_finetune", "--reward_function", "flat:score", "--output_dir", "out"]
    outcome = run("ppo", *flags)
    assert outcome.status == 2
    assert "none of the LlamaForCausalLM's weights is trained" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("whole", "has other weights than"),
        ("tokenizer", "has another tokenizer"),
        ("biases", "has biases of its own"),
        ("policy", "--peft none trains every weight"),
    ],
)
def test_what_cannot_share_is_said_or_refused(
    spoil: str,
    why: str,
    run: Run,
    ppo_flags: list[object],
    lora_reward_dir: Path,
    text_llama_dir: Path,
    workplace: Path,
) -> None:
    reward = workplace / "reward"
    shutil.copytree(lora_reward_dir, reward)
    config = json.loads((reward / "adapter_config.json").read_text())
    if spoil == "whole":
        shutil.copytree(text_llama_dir, workplace / "other")
        weights = (workplace / "other" / "model.safetensors").read_bytes()
        (workplace / "other" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        config["base_model_name_or_path"] = str(workplace / "other")
    if spoil == "biases":
        config["bias"] = "lora_only"
    (reward / "adapter_config.json").write_text(json.dumps(config))
    if spoil == "tokenizer":
        content = json.loads((reward / "tokenizer.json").read_text())
        content["model"]["merges"] = []
        (reward / "tokenizer.json").write_text(json.dumps(content))
    flags = [*ppo_flags, "--reward_model_name", reward, "--dry_run", "--output_dir", "out"]
    flags += ["--full_finetune"] if spoil == "policy" else []
    outcome = run("ppo", *flags, "--share_backbone", "true")
    assert outcome.status == 2
    assert "error: --share_backbone true: the re" in outcome.err
    assert why in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    outcome = run("ppo", *flags)
    assert outcome.status == 0, outcome.err
    copies = "3 copies" if spoil == "policy" else "2 copies"
    assert f"base weights: {copies} a process" in outcome.err
    assert why in outcome.err


@pytest.mark.parametrize(
    ("continues", "reference", "expected"),
    [
        (True, Chain("base", ("sft",)), "the policy's base with the adapter it began from"),
        (False, Chain("base", ("sft",)), "the policy without its adapter"),
        (True, Chain("same", ("below", "other")), "the policy's base with below and other"),
        (True, Chain("base"), "the policy's base with no adapter"),
    ],
)
def test_the_reference_is_named_as_it_is(continues: bool, reference: Chain, expected: str) -> None:
    settings = parse_ppo(["--model_name", "sft", "--reward_function", "flat:score", "--output_dir", "out"])
    sharing = Sharing(Chain("base", ("sft",)), continues, shared={"reference": reference})
    assert ppo_models.reference_line(settings, sharing) == f"reference: {expected}"


@pytest.fixture(scope="session")
def lora_reward_dir(text_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model's adapter with its head and tokenizer."""
    directory = tmp_path_factory.mktemp("lora_reward")
    model = AutoModelForSequenceClassification.from_pretrained(text_llama_dir, num_labels=1)
    peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(text_llama_dir).save_pretrained(directory)
    return directory
