"""What `--deepspeed` and the flags about ZeRO come to, before any device."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.arguments.sharding import deepspeed_config, zero_stage
from rlhf_hw.models.wrapping import lent_to

SFT = ("--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--peft", "none")
PPO = ("--model_name", "m", "--dataset_name", "d", "--output_dir", "o", "--reward_function", "a:b")


@pytest.fixture(autouse=True)
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: name)


def test_without_deepspeed_there_is_no_configuration() -> None:
    for words in ((), ("--deepspeed", "False")):
        run = parse_sft([*SFT, *words])
        assert zero_stage(run) is None
        assert deepspeed_config(run, "bf16") is None


def test_a_bare_switch_follows_the_other_flags() -> None:
    config = deepspeed_config(parse_sft([*SFT, "--deepspeed", "--zero_stage", "3", "--offload"]), "bf16")
    assert config is not None
    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert config["gradient_clipping"] == config["gradient_accumulation_steps"] == "auto"
    bare = deepspeed_config(parse_sft([*SFT, "--deepspeed"]), "no")
    assert bare is not None
    assert bare["zero_optimization"] == {"stage": 0}
    assert "torch_autocast" not in bare


def test_a_file_is_deepspeeds_own_configuration(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    given = {"zero_optimization": {"stage": 2, "overlap_comm": False}, "bf16": {"enabled": "auto"}}
    file.write_text(json.dumps(given))
    for said in (str(file), json.dumps(given)):
        run = parse_sft([*SFT, "--deepspeed", said])
        assert zero_stage(run) == 2
        config = deepspeed_config(run, "bf16")
        assert config is not None
        assert config["zero_optimization"] == given["zero_optimization"]
        assert config["torch_autocast"]["enabled"]
        assert config["bf16"] == {"enabled": False}


def test_policy_and_critic_have_the_higher_of_their_stages() -> None:
    words = [*PPO, "--deepspeed", "--actor_zero_stage", "1", "--critic_zero_stage", "3"]
    assert zero_stage(parse_ppo(words)) == 3


@pytest.mark.parametrize("offloaded", [False, True])
def test_an_offloaded_model_is_on_the_device_while_it_is_asked(offloaded: bool) -> None:
    moves = []

    class Model(nn.Module):
        def to(self, device):  # type: ignore[no-untyped-def, override]
            moves.append(str(device))
            return self

    with lent_to(torch.device("meta"), Model(), offloaded=offloaded):
        assert moves == ["meta"]
    assert moves == ["meta", *(["cpu"] if offloaded else [])]
