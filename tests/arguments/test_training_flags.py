"""The training flags mean the same on every transformers, older flags included."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.arguments.training import accepted_fields, training_environment, training_kwargs
from rlhf_hw.compat.training_flags import OLDER, groups_by_length, translate
from rlhf_hw.errors import UserError

SFT = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
OLD_STACK = accepted_fields(TrainingArguments) | {
    "group_by_length",
    "warmup_ratio",
    "logging_dir",
    "overwrite_output_dir",
}
NEW_STACK = accepted_fields(TrainingArguments) - {
    "group_by_length",
    "warmup_ratio",
    "logging_dir",
    "overwrite_output_dir",
}


def arguments(*argv: str) -> TrainingArguments:
    """What the installed transformers makes of the flags."""
    flags = parse_sft([*SFT, "--no_cuda", *argv]).training
    kwargs, _ = training_kwargs(flags, accepted_fields(TrainingArguments))
    return TrainingArguments(**kwargs)


def test_untouched_flags_are_left_to_the_trainers_own_defaults() -> None:
    # optimum-habana has other defaults than transformers: passing transformers' own would undo them
    kwargs, notes = training_kwargs(parse_sft(SFT).training, NEW_STACK)
    assert kwargs == {
        "output_dir": "o",
        "do_train": True,
        "report_to": ["none"],
        "remove_unused_columns": False,
    }
    assert notes == []


def test_a_flag_given_with_the_default_value_is_passed_on() -> None:
    kwargs, _ = training_kwargs(parse_sft([*SFT, "--adam_epsilon", "1e-8"]).training, NEW_STACK)
    assert kwargs["adam_epsilon"] == 1e-8


@pytest.mark.parametrize("flag", ["--evaluation_strategy", "--eval_strategy"])
def test_evaluation_strategy_is_eval_strategy(flag: str) -> None:
    assert arguments(flag, "epoch").eval_strategy == "epoch"


OBJECTS = (
    "accelerator_config",
    "gradient_checkpointing_kwargs",
    "liger_kernel_config",
    "lr_scheduler_kwargs",
)


@pytest.mark.parametrize("flag", OBJECTS)
def test_a_json_object_may_lie_in_a_file(flag: str, tmp_path: Path) -> None:
    file = tmp_path / "object.json"
    file.write_text('{"a": 1}')
    there, _ = training_kwargs(parse_sft([*SFT, f"--{flag}", str(file)]).training, NEW_STACK)
    here, _ = training_kwargs(parse_sft([*SFT, f"--{flag}", ' {"a": 1}']).training, NEW_STACK)
    name = flag if flag in here else flag.replace("gradient", "activation")
    assert there[name] == here[name]
    assert there[name] in ('{"a": 1}', {"a": 1})
    with pytest.raises(
        UserError, match=f"--{flag}: there is no file nowhere; give a JSON object, or a file of one"
    ):
        training_kwargs(parse_sft([*SFT, f"--{flag}", "nowhere"]).training, NEW_STACK)
    file.write_text("[1]")
    with pytest.raises(UserError, match="holds list, expected a JSON object"):
        training_kwargs(parse_sft([*SFT, f"--{flag}", str(file)]).training, NEW_STACK)


def test_no_cuda_is_the_cpu() -> None:
    run = parse_sft([*SFT, "--no_cuda"])
    assert run.training.use_cpu is True
    assert run.hardware.device == "cpu"


@pytest.mark.parametrize(("ratio", "steps"), [("0.1", 10), ("0.25", 25), ("0", 0), ("1", 100)])
def test_warmup_ratio_is_a_fraction_of_the_steps(ratio: str, steps: int) -> None:
    assert arguments("--warmup_ratio", ratio).get_warmup_steps(100) == steps


@pytest.mark.parametrize(("given", "steps"), [("7", 7), ("0.1", 10)])
def test_warmup_steps_may_be_a_fraction_too(given: str, steps: int) -> None:
    assert arguments("--warmup_steps", given).get_warmup_steps(100) == steps


def test_warmup_steps_beats_warmup_ratio() -> None:
    assert arguments("--warmup_steps", "7", "--warmup_ratio", "0.5").get_warmup_steps(100) == 7


def test_group_by_length_samples_by_length() -> None:
    assert groups_by_length(arguments("--group_by_length"))
    assert not groups_by_length(arguments("--group_by_length", "False"))
    assert not groups_by_length(arguments())


@pytest.mark.parametrize(("grouped", "strategy"), [(True, "sequential"), (False, "group_by_length")])
def test_two_orders_of_the_data_contradict_each_other(grouped: bool, strategy: str) -> None:
    given, accepted = {"train_sampling_strategy": strategy}, NEW_STACK | {"train_sampling_strategy"}
    with pytest.raises(
        UserError, match=f"--group_by_length {grouped} and --train_sampling_strategy {strategy}"
    ):
        translate({**given, "group_by_length": grouped}, accepted)
    for agreeing in (not grouped, None):
        assert translate({**given, "group_by_length": agreeing}, accepted)[0] == given


def test_adafactor_is_an_optimizer() -> None:
    assert arguments("--adafactor").optim == "adafactor"
    assert arguments("--adafactor=False", "--optim", "sgd").optim == "sgd"


@pytest.mark.parametrize(
    ("old", "new"), [("adamw_hf", "adamw_torch"), ("adamw_apex_fused", "adamw_torch_fused")]
)
def test_optimizers_that_are_gone_mean_their_successors(old: str, new: str) -> None:
    assert arguments("--optim", old).optim == new


@pytest.mark.parametrize("flag", ["--gradient_checkpointing", "--activation_checkpointing"])
def test_both_names_of_gradient_checkpointing_turn_it_on(flag: str) -> None:
    assert arguments(flag).gradient_checkpointing is True


@pytest.mark.parametrize("flag", ["--per_gpu_train_batch_size", "--per_device_train_batch_size"])
def test_batch_sizes_per_gpu_are_per_device(flag: str) -> None:
    assert arguments(flag, "3").per_device_train_batch_size == 3


def test_fsdp_and_accelerator_flags_go_into_their_objects() -> None:
    flags = parse_sft(
        [*SFT, "--fsdp_min_num_params", "5", "--fsdp_config", '{"xla": false}', "--split_batches"]
    )
    kwargs, _ = training_kwargs(flags.training, NEW_STACK)
    assert kwargs["fsdp_config"] == {"xla": False, "min_num_params": 5}
    assert kwargs["accelerator_config"] == {"split_batches": True}


def test_inputs_for_metrics_and_organization_have_present_names() -> None:
    flags = parse_sft([*SFT, "--include_inputs_for_metrics", "--push_to_hub_organization", "us"]).training
    kwargs, _ = training_kwargs(flags, NEW_STACK)
    assert kwargs["include_for_metrics"] == ["inputs"]
    assert kwargs["hub_model_id"] == "us/o"


def test_a_json_object_reaches_transformers_as_one() -> None:
    made = arguments("--gradient_checkpointing_kwargs", '{"use_reentrant": false}')
    assert made.gradient_checkpointing_kwargs == {"use_reentrant": False}
    flags = parse_sft([*SFT, "--liger_kernel_config", '{"rope": true}']).training
    assert training_kwargs(flags, NEW_STACK)[0]["liger_kernel_config"] == {"rope": True}


@pytest.mark.parametrize("accepted", [OLD_STACK, NEW_STACK])
@pytest.mark.parametrize("name", [name for name, flag in OLDER.items() if "No effect" in flag.help])
def test_a_flag_without_effect_says_so_and_changes_nothing(name: str, accepted: set[str]) -> None:
    other: dict[Any, Any] = {False: True, True: False, "auto": "apex", "O1": "O2", "last": "all", "": "x"}
    default = OLDER[name].default
    kwargs, notes = translate({name: 2 if default in (-1, None) else other[default]}, accepted)
    assert kwargs == {}
    assert len(notes) == 1
    assert notes[0].startswith(f"--{name}: no effect; ")


@pytest.mark.parametrize("name", OLDER)
def test_every_older_flag_at_its_default_changes_nothing(name: str) -> None:
    assert translate({name: OLDER[name].default}, NEW_STACK) == ({}, [])


def test_the_logging_directory_is_a_flag_on_one_stack_and_a_variable_on_the_other() -> None:
    flags = parse_sft([*SFT, "--logging_dir", "tb"]).training
    assert training_kwargs(flags, OLD_STACK)[0]["logging_dir"] == "tb"
    assert training_environment(flags, OLD_STACK) == {}
    assert "logging_dir" not in training_kwargs(flags, NEW_STACK)[0]
    assert training_environment(flags, NEW_STACK) == {"TENSORBOARD_LOGGING_DIR": "tb"}


def test_the_precision_is_not_said_unless_it_is_given() -> None:
    assert parse_sft(SFT).training.bf16 is None
    assert parse_sft([*SFT, "--bf16", "False"]).training.bf16 is False


def test_every_field_of_the_installed_training_arguments_is_a_flag_or_means_one() -> None:
    flags = parse_sft(SFT).training
    spelled_otherwise = {
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "no_cuda",
        "per_gpu_eval_batch_size",
        "per_gpu_train_batch_size",
        "push_to_hub_model_id",
        "push_to_hub_token",
        "torchdynamo",
    }
    missing = {name for name in accepted_fields(TrainingArguments) if not hasattr(flags, name)}
    assert missing - spelled_otherwise - {"parallelism_config"} == set()  # an object: no text stands for it
    for name in spelled_otherwise & missing:
        value = "{}" if name.endswith("kwargs") else "1"
        parse_sft([*SFT, f"--{name}={value}"])


def test_parsing_loads_nothing_beyond_training_arguments_and_touches_no_device() -> None:
    program = (
        "import sys\n"
        "from rlhf_hw.arguments import merge, ppo, reward, sft\n"
        "assert 'transformers.training_args' not in sys.modules\n"
        "from transformers import TrainingArguments\n"
        "needed = set(sys.modules)\n"
        "ppo.parse_ppo(['--model_name', 'm', '--reward_model_name', 'r', '--use_habana', '--bf16'])\n"
        "heavy = {'transformers.trainer', 'peft', 'trl', 'optimum.habana', 'habana_frameworks', 'datasets'}\n"
        "assert not heavy & (set(sys.modules) - needed)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("parse", "model"),
    [(parse_sft, "model_name_or_path"), (parse_reward, "model_name_or_path"), (parse_ppo, "model_name")],
)
def test_flags_about_rollouts_say_where_there_are_none(parse: Any, model: str) -> None:
    words = [f"--{model}", "m", "--dataset_name", "d", "--output_dir", "o"]
    words += ["--reward_model_name", "r"] if parse is parse_ppo else []
    notes = parse([*words, "--reuse_cache", "--ignore_eos", "False"]).notes
    line = "--ignore_eos, --reuse_cache: no effect in this stage; only PPO has rollouts to act in"
    assert (line in notes) == (parse is not parse_ppo)
    assert not any("rollouts" in note for note in parse(words).notes)


def test_ppo_says_that_its_batches_are_not_of_rows() -> None:
    words = ["--model_name", "m", "--reward_model_name", "r", "--dataset_name", "d"]
    (note,) = parse_ppo([*words, "--group_by_length"]).notes
    assert note.startswith("--group_by_length: no effect in PPO")
    assert parse_ppo(words).notes == ()
