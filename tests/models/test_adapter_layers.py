"""Which layers get LoRA where their names are patterns, and dropout that a flag sets."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from rlhf_hw.errors import UserError
from rlhf_hw.models.adapters import adapter_config, attach_adapter, matching_layers
from rlhf_hw.models.wrapping import set_dropout


def last_names(layers: set[str]) -> set[str]:
    return {name.split(".")[-1] for name in layers}


def test_a_pattern_is_every_linear_layer_whose_name_fits(make_model: Callable[..., Any]) -> None:
    opt = make_model("opt")
    inside = matching_layers(opt, ["*decoder.layers.*"])
    assert last_names(inside) == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    assert all("decoder.layers." in name for name in inside)
    assert last_names(matching_layers(opt, ["*q_proj*", "*fc*"])) == {"q_proj", "fc1", "fc2"}


def test_a_pattern_never_takes_the_output_head_or_the_score(
    make_model: Callable[..., Any], architecture: str
) -> None:
    for labels in (None, 1):
        model = make_model(architecture, labels=labels)
        taken = matching_layers(model, ["*"])
        assert not last_names(taken) & {"lm_head", "score"}
        assert len(taken) >= 8


def test_a_name_without_a_star_is_left_to_peft(make_model: Callable[..., Any]) -> None:
    assert matching_layers(make_model("llama"), ["q_proj"]) == {"q_proj"}


def test_a_pattern_that_fits_nothing_says_how_layers_are_called(make_model: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"contains decoder\.layers\.; they are called as model\.layers\.0"):
        matching_layers(make_model("llama"), ["*decoder.layers.*"])


def test_an_adapter_stands_on_the_layers_of_its_pattern(make_model: Callable[..., Any]) -> None:
    config = adapter_config(
        "lora",
        task_type="CAUSAL_LM",
        rank=2,
        alpha=1,
        dropout=0.0,
        target_modules=["*q_proj*", "*layers.1.*v_proj"],
        all_linear=False,
        num_virtual_tokens=0,
        ptun_hidden_size=0,
        adapter_len=0,
        adapter_layers=0,
    )
    model = attach_adapter(make_model("llama"), config, gradient_checkpointing=False)
    trained = {name.split(".lora_")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    found = sorted(name.removeprefix("base_model.model.model.") for name in trained)
    assert found == ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]


def test_dropout_is_set_wherever_there_is_some(make_model: Callable[..., Any]) -> None:
    model = make_model("opt", dropout=0.1)
    set_dropout(model, 0.3)
    layer = model.model.decoder.layers[0]
    assert (layer.dropout, layer.self_attn.dropout) == (0.3, 0.3)
    gpt = make_model("gpt2", dropout=0.1)
    set_dropout(gpt, 0.0)
    assert {module.p for module in gpt.modules() if isinstance(module, nn.Dropout)} == {0.0}
