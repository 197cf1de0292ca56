"""LoRA weights out of one file, merged into layers of either layout."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_hw.evaluation.lora_state import merge_lora_state


@pytest.mark.parametrize("layer", ["c_attn", "c_proj"])  # c_proj is square: either way round would fit
def test_layers_that_hold_their_weight_as_in_by_out_are_merged_as_peft_merges_them(
    layer: str, tmp_path: Path
) -> None:
    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    base = GPT2LMHeadModel(config)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            lora_alpha=4,
            target_modules=[f"attn.{layer}"],
            fan_in_fan_out=True,
            init_lora_weights=False,
        ),
    )
    torch.save(peft.get_peft_model_state_dict(adapted), tmp_path / "lora.bin")
    expected = adapted.merge_and_unload().state_dict()

    model = GPT2LMHeadModel(config)
    model.load_state_dict(before)
    assert merge_lora_state(model, str(tmp_path / "lora.bin"), rank=2, alpha=4, flag="--lora") == 1
    name = f"transformer.h.0.attn.{layer}.weight"
    assert not torch.equal(before[name], expected[name])
    torch.testing.assert_close(model.state_dict()[name], expected[name])
