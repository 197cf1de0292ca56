"""What the README promises of `make demo`, seen on the real thing: minutes, so it runs apart (`make acceptance`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(2400)]


def test_the_demo_ends_with_a_better_model(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_hw", "demo", "--output_dir", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((out / "demo.json").read_text())
    print(json.dumps(report, indent=2))
    assert report["reward_accuracy"] >= 0.85
    assert report["win_rate"] >= 0.65
    assert report["gold_ppo"] > report["gold_sft"]
    assert report["score_after"] > report["score_before"]
    for name in ("sft perplexity", "reward accuracy", "win rate", "gold score", "KL", "time: ppo"):
        assert name.lower() in done.stdout.lower()
    model = AutoModelForCausalLM.from_pretrained(out / "merged")
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    logits = model(**tokenizer("Customer: Hello!\nAssistant:", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()
