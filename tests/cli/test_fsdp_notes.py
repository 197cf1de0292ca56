"""What a user is told of FSDP before anything is trained."""

import copy
import os

import pytest

from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.cli.sharding import sharding_notes
from rlhf_hw.compat.fsdp_through_accelerate import OWN_MARK

SFT = ["--model_name_or_path", "m", "--output_dir", "out", "--dataset_name", "some/set"]


def test_a_line_says_what_is_shared_and_when_weights_are_gathered() -> None:
    (line,) = sharding_notes(parse_sft([*SFT, "--fsdp"]))
    assert line.startswith("fsdp: processes share the optimizer's state, the gradients and the weights")
    (line,) = sharding_notes(parse_sft([*SFT, "--fsdp", "shard_grad_op", "--fsdp_min_num_params", "2000"]))
    assert "by modules of at least 2,000 weights for the forward pass, and kept until it" in line


def test_settings_without_fsdp_have_no_effect_and_say_so() -> None:
    notes = sharding_notes(parse_sft([*SFT, "--fsdp_config", '{"min_num_params": 5}']))
    assert notes == ["--fsdp_config: no effect without --fsdp"]
    assert not sharding_notes(parse_sft(SFT))


def test_a_launch_of_accelerates_with_fsdp_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    # as `datasets` does when it maps in processes
    monkeypatch.setattr(os, "environ", copy.deepcopy(os.environ))
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(OWN_MARK, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    launch, line = sharding_notes(parse_sft(SFT))
    assert launch == "accelerate launch --use_fsdp: its settings are taken"
    assert "and kept until it" in line
    launch, line = sharding_notes(parse_sft([*SFT, "--fsdp", "full_shard"]))
    assert launch == "accelerate launch --use_fsdp: --fsdp was given too, and decides"
    assert "and gathered again" in line
