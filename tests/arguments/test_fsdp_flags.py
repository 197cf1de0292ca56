"""What `--fsdp`, its configuration and accelerate's launcher are read as."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_hw.arguments.fsdp import FSDPPlan, launched_with_fsdp, plan_of_the_launch, read_plan


def plan(said: Any = "true", config: Any = None, size: int = 0, layer: str | None = None) -> FSDPPlan:
    return read_plan(said, config, min_num_params=size, layer_class=layer)


@pytest.mark.parametrize(
    "said", ["true", True, "full_shard auto_wrap", "full_shard", ["full_shard"], "auto_wrap"]
)
def test_the_bare_flag_is_full_shard_layer_by_layer(said: Any) -> None:
    assert plan(said) == FSDPPlan(reshard_after_forward=True, units="layers")


def test_shard_grad_op_keeps_weights_until_the_backward_pass() -> None:
    assert plan("shard_grad_op auto_wrap") == FSDPPlan(reshard_after_forward=False)
    assert "and kept until it" in plan("shard_grad_op").line


def test_the_flag_beats_its_configuration_which_a_bare_flag_leaves_to_it() -> None:
    config = {"reshard_after_forward": False}
    assert not plan("true", config).reshard_after_forward
    assert plan("full_shard", config).reshard_after_forward


def test_a_configuration_is_an_object_or_a_file_and_may_carry_accelerates_prefix(tmp_path: Path) -> None:
    config = {"fsdp_transformer_layer_cls_to_wrap": "A,B", "fsdp_activation_checkpointing": "true"}
    file = tmp_path / "fsdp.json"
    file.write_text(json.dumps(config))
    expected = FSDPPlan(layer_classes=("A", "B"), activation_checkpointing=True)
    assert plan(config=config) == plan(config=json.dumps(config)) == plan(config=str(file)) == expected


def test_older_flags_say_what_is_gathered_at_once() -> None:
    assert (
        plan(size=300) == plan(config={"min_num_params": 300}) == FSDPPlan(units="size", min_num_params=300)
    )
    assert plan(layer="LlamaDecoderLayer") == FSDPPlan(layer_classes=("LlamaDecoderLayer",))
    assert plan(config={"auto_wrap_policy": "NO_WRAP"}) == FSDPPlan(units="nothing")


def test_what_fsdp1_wanted_to_know_is_answered_in_a_line() -> None:
    found = plan(config={"version": 1, "use_orig_params": False, "forward_prefetch": False, "xla": False})
    assert [note.split(":")[0] for note in found.notes] == [
        "--fsdp_config version 1",
        "--fsdp_config use_orig_params false",
    ]


def test_a_plan_survives_the_way_through_training_arguments() -> None:
    asked = FSDPPlan(False, "size", (), 7, True, "bf16")
    assert FSDPPlan.from_config(json.loads(json.dumps(asked.as_config()))) == asked
    assert FSDPPlan.from_config({"version": 2}) == FSDPPlan()


def test_accelerates_launch_is_read_from_its_environment() -> None:
    environ = {  # as accelerate writes it, for version 1 and for version 2
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "1",
        "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_MIN_NUM_PARAMS": "100000000",
        "FSDP_FORWARD_PREFETCH": "false",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_SYNC_MODULE_STATES": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    }
    assert launched_with_fsdp(environ)
    assert plan_of_the_launch(environ) == FSDPPlan(reshard_after_forward=False)
    assert plan_of_the_launch({**environ, "FSDP_VERSION": "2"}) == FSDPPlan()
    by_size = plan_of_the_launch({**environ, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"})
    assert by_size == FSDPPlan(False, "size", (), 100_000_000)
    assert not launched_with_fsdp({**environ, "FSDP_SET_BY_RLHF_HW": "true"})
    assert not launched_with_fsdp({})
