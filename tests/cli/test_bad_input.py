"""Bad input ends in one line that names the flag, exit status 2, and a disk as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_results import write_rows

from backends import Availability
from backends.hpu import HPUBackend
from rlhf_hw.errors import UserError
from rlhf_hw.estimate.sizes import model_config
from rlhf_hw.models.fingerprint import model_fingerprint
from rlhf_hw.models.load import LoadOptions

Run = Callable[..., Any]
OUT = ("--output_dir", "out")


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("flag", ["--model_name_or_path", "--tokenizer_name", "--config_name"])
def test_a_directory_that_is_not_there(
    stage: str, flag: str, refused: Callable[..., str], language_model_flags: list[object]
) -> None:
    line = refused(stage, *language_model_flags, *OUT, flag, "./nowhere")
    assert f"{flag}: there is no directory ./nowhere" in line


@pytest.mark.parametrize(
    "flag",
    [
        "--model_name",
        "--tokenizer_name",
        "--reward_model_name",
        "--reference_model_name",
        "--critic_model_name",
    ],
)
def test_a_model_of_ppo_that_is_not_there(
    flag: str, refused: Callable[..., str], ppo_flags: list[object], text_llama_dir: Path
) -> None:
    reward = ["--reward_model_name", text_llama_dir, "--value_model", "separate"]
    line = refused("ppo", *ppo_flags, *reward, *OUT, flag, "./nowhere")
    assert f"{flag}: there is no directory ./nowhere" in line


def test_a_directory_without_a_model(
    refused: Callable[..., str], language_model_flags: list[object], workplace: Path
) -> None:
    (workplace / "empty").mkdir()
    line = refused("sft", *language_model_flags, *OUT, "--model_name_or_path", "empty")
    assert "--model_name_or_path: empty is a directory without config.json" in line


def test_a_language_model_where_a_reward_model_is_asked_for(
    refused: Callable[..., str], ppo_flags: list[object], text_llama_dir: Path
) -> None:
    line = refused("ppo", *ppo_flags, *OUT, "--reward_model_name", text_llama_dir)
    assert "--reward_model_name" in line
    assert "no score head" in line


def test_a_hub_name_that_cannot_be_had(
    refused: Callable[..., str], language_model_flags: list[object]
) -> None:
    line = refused("sft", *language_model_flags, *OUT, "--model_name_or_path", "nobody/nothing")
    assert "'nobody/nothing'" in line


@pytest.mark.parametrize("flag", ["--train_file", "--validation_file"])
def test_a_data_file_that_is_not_there(
    flag: str, refused: Callable[..., str], language_model_flags: list[object]
) -> None:
    line = refused("sft", *language_model_flags, *OUT, flag, "nowhere.jsonl")
    assert f"{flag}: there is no file nowhere.jsonl" in line


def test_a_malformed_row_is_named_by_its_line(
    refused: Callable[..., str], language_model_flags: list[object], workplace: Path
) -> None:
    (workplace / "bad.jsonl").write_text('{"question": "a", "chosen": "b", "rejected": "c"}\n{"question": \n')
    line = refused("sft", *language_model_flags, *OUT, "--train_file", "bad.jsonl")
    assert "bad.jsonl, line 2: not valid JSON" in line


def test_columns_of_no_known_format_are_listed_with_the_known_ones(
    refused: Callable[..., str], language_model_flags: list[object], workplace: Path
) -> None:
    write_rows(workplace / "odd.jsonl", [{"left": "a", "right": "b"}])
    line = refused("sft", *language_model_flags, *OUT, "--train_file", "odd.jsonl")
    assert "left, right" in line
    assert "question chosen rejected" in line


def test_rows_without_a_rejected_answer_are_no_pairs(
    refused: Callable[..., str], language_model_flags: list[object], workplace: Path
) -> None:
    write_rows(workplace / "answers.jsonl", [{"instruction": "a", "input": "", "output": "b"}])
    line = refused("reward", *language_model_flags, *OUT, "--train_file", "answers.jsonl")
    assert "there is no rejected answer" in line


@pytest.mark.parametrize(
    "flags", [["--dispatch_batches"], ["--accelerator_config", '{"dispatch_batches": true}']]
)
def test_pairs_are_not_cut_by_rows(
    refused: Callable[..., str], language_model_flags: list[object], workplace: Path, flags: list[str]
) -> None:
    write_rows(workplace / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    line = refused("reward", *language_model_flags, *OUT, "--train_file", "pairs.jsonl", *flags)
    assert "--dispatch_batches: a batch holds the chosen answers" in line


@pytest.mark.parametrize("both", [True, False])
def test_ppo_wants_one_kind_of_reward(
    both: bool, refused: Callable[..., str], ppo_flags: list[object], text_llama_dir: Path
) -> None:
    kinds = ["--reward_model_name", text_llama_dir, "--reward_function", "a:b"] if both else []
    line = refused("ppo", *ppo_flags, *OUT, *kinds)
    assert "--reward_model_name and --reward_function" in line


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("no_such_module_here:score", "no_such_module_here"),
        ("json:no_such_function", "no function no_such_function"),
        ("json.dumps", "package.module:function"),
        ("broken_reward:score", "broken_reward"),
    ],
)
def test_a_reward_function_that_cannot_be_had(
    spec: str, fault: str, refused: Callable[..., str], ppo_flags: list[object], workplace: Path
) -> None:
    (workplace / "broken_reward.py").write_text("import a_package_that_is_not_installed\n")
    line = refused("ppo", *ppo_flags, *OUT, "--reward_function", spec)
    assert "--reward_function" in line
    assert fault in line


def test_batch_sizes_that_do_not_divide(refused: Callable[..., str], ppo_flags: list[object]) -> None:
    line = refused("ppo", *ppo_flags, *OUT, "--reward_function", "json:dumps", "--batch_size", 6)
    assert "--batch_size: 6 is not a multiple of" in line


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_an_output_directory_with_something_in_it(
    stage: str, refused: Callable[..., str], language_model_flags: list[object], workplace: Path
) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "thesis.txt").write_text("mine")
    line = refused(stage, *language_model_flags, *OUT)
    assert "--output_dir: 'out' is not empty" in line


@pytest.mark.parametrize("said", ["true", "./checkpoint-7"])
def test_nothing_to_resume_from(
    said: str, refused: Callable[..., str], language_model_flags: list[object]
) -> None:
    line = refused("sft", *language_model_flags, *OUT, "--resume_from_checkpoint", said)
    assert "--resume_from_checkpoint" in line


def test_a_tracker_that_is_not_installed(refused: Callable[..., str], ppo_flags: list[object]) -> None:
    line = refused("ppo", *ppo_flags, *OUT, "--reward_function", "json:dumps", "--log_with", "trackingthing")
    assert "trackingthing" in line
    assert "not installed" in line


@pytest.mark.parametrize(("flags", "asked"), [(["--device", "hpu"], "hpu"), (["--use_habana"], "hpu")])
def test_a_device_that_is_not_here(
    flags: list[str],
    asked: str,
    refused: Callable[..., str],
    language_model_flags: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HPUBackend, "available", lambda: Availability(False, "no Gaudi is here"))
    line = refused("sft", *language_model_flags, *OUT, *flags)
    assert f"--device {asked}: no Gaudi is here" in line


def test_cuda_where_there_is_none(
    refused: Callable[..., str], language_model_flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = refused("sft", *language_model_flags, *OUT, "--device", "cuda")
    assert "--device cuda" in line
    assert "--device auto" in line


def test_fp16_on_a_cpu(refused: Callable[..., str], language_model_flags: list[object]) -> None:
    line = refused("sft", *language_model_flags, *OUT, "--device", "cpu", "--fp16")
    assert "--fp16" in line
    assert "--bf16" in line


def test_an_unknown_flag_with_a_guess_at_what_was_meant(
    refused: Callable[..., str], language_model_flags: list[object]
) -> None:
    assert "did you mean --learning_rate?" in refused("sft", *language_model_flags, *OUT, "--learning_rat", 1)


def test_streaming_of_a_hub_set_without_an_end(refused: Callable[..., str], text_llama_dir: Path) -> None:
    flags = ["--model_name_or_path", text_llama_dir, "--dataset_name", "nobody/nothing", "--streaming"]
    assert "--streaming: needs --max_train_samples" in refused("sft", *flags, *OUT)


def test_quantized_weights_without_their_library(
    refused: Callable[..., str], language_model_flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.quantization.find_spec", lambda name: None)
    line = refused("sft", *language_model_flags, *OUT, "--device", "cpu", "--qlora")
    assert "--qlora, --load_in_4bit: needs bitsandbytes; pip install bitsandbytes" in line


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--adapter_model_name", "MODEL", "--output_name", "merged"], "has no adapter_config.json"),
        (["--adapter_model_name", "./nowhere", "--output_name", "merged"], "there is no directory ./nowhere"),
        (["--adapter_model_name", "MODEL", "--output_name", "MODEL"], "the adapter's own directory"),
        (["--adapter_model_name", "MODEL"], "--output_name"),
    ],
)
def test_merging_what_cannot_be_merged(
    flags: list[str], fault: str, refused: Callable[..., str], text_llama_dir: Path
) -> None:
    line = refused("merge", *(str(text_llama_dir) if word == "MODEL" else word for word in flags))
    assert fault in line


def test_an_adapter_whose_base_is_gone_names_the_flag_that_helps(
    refused: Callable[..., str], workplace: Path
) -> None:
    adapter = workplace / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "./moved/away"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    line = refused("merge", "--adapter_model_name", adapter, "--output_name", "merged")
    assert "./moved/away" in line
    assert "--base_model_name" in line


@pytest.mark.parametrize("way", ["itself", "an adapter on itself"])
def test_an_adapter_on_itself(refused: Callable[..., str], workplace: Path, way: str) -> None:
    for name, base in (("one", "one" if way == "itself" else "two"), ("two", "one")):
        (workplace / name).mkdir()
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": f"./{base}"}
        (workplace / name / "adapter_config.json").write_text(json.dumps(config))
    named = "one: its adapter_config.json names itself as its base"
    assert named in refused("chat", "--path", "one")
    assert named in refused("merge", "--adapter_model_name", "one", "--output_name", "merged")
    with pytest.raises(UserError, match=named):
        model_fingerprint("one")
    with pytest.raises(UserError, match=named):
        model_config("one", LoadOptions())


def test_chat_with_what_is_no_model(refused: Callable[..., str]) -> None:
    assert "--path: there is no directory ./nowhere" in refused("chat", "--path", "./nowhere")


def test_an_unknown_command_is_told_the_known_ones(run: Run, workplace: Path) -> None:
    outcome = run("trian")
    assert outcome.status == 2
    assert outcome.err.startswith("rlhf-hw: error: no command 'trian'; there are ")
    assert len(outcome.err.splitlines()) == 1
