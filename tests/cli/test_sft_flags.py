"""`rlhf-hw sft`: each flag changes what it says, and only that."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from run_results import losses, metrics, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends.cpu import CPUBackend
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.cli.session import Session
from rlhf_hw.cli.sft import shape_policy
from rlhf_hw.cli.training_arguments import make_training_arguments

Train = Callable[..., Path]

#: Sizes of the adapters, small; each kind reads its own.
ADAPTER_SIZES = [
    *("--num_virtual_tokens", 3, "--ptun_hidden_size", 16, "--adapter_len", 2, "--adapter_layers", 1),
    *("--lora_rank", 4, "--lora_target_modules", "q_proj,v_proj"),
]
#: Each step goes over all rows, in one batch.
WHOLE_SET: tuple[object, ...] = ("--per_device_train_batch_size", 12, "--max_seq_length", 128)
_WHOLE_SET_LOSSES: list[float] = []
PROBE = torch.tensor([[5, 17, 80, 200, 41]])


@pytest.fixture
def whole_set_losses(trained: Train, sft_flags: list[object]) -> list[float]:
    """The two losses of training on the whole set; run once for all who ask."""
    if not _WHOLE_SET_LOSSES:
        _WHOLE_SET_LOSSES.extend(losses(trained("sft", *sft_flags, *WHOLE_SET, output="plain")))
    return _WHOLE_SET_LOSSES


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix", "ptun", "llama_adapter"])
def test_each_kind_of_adapter_trains_and_plain_peft_loads_it(
    kind: str, trained: Train, sft_flags: list[object], text_llama_dir: Path
) -> None:
    out = trained("sft", *sft_flags, *WHOLE_SET, "--peft", kind, *ADAPTER_SIZES)
    base = AutoModelForCausalLM.from_pretrained(text_llama_dir).eval()
    before = base(PROBE).logits
    after = PeftModel.from_pretrained(base, str(out)).eval()(PROBE).logits[:, -PROBE.shape[1] :]
    assert torch.isfinite(after).all()
    assert not torch.allclose(before, after)
    assert losses(out)[1] < losses(out)[0]


@pytest.mark.parametrize("flags", [("--peft", "none"), ("--full_finetune",)], ids=["none", "full_finetune"])
def test_without_an_adapter_every_weight_is_trained_and_saved(
    flags: tuple[str, ...], trained: Train, sft_flags: list[object], text_llama_dir: Path
) -> None:
    out = trained("sft", *sft_flags, *flags)
    assert not (out / "adapter_config.json").exists()
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters())
        for directory in (text_llama_dir, out)
    )
    same = [name for name, weight in after.items() if torch.equal(weight, before[name])]
    assert same == []


@pytest.mark.parametrize("train_on_inputs", [False, True])
def test_the_first_loss_is_plain_transformers_loss_on_the_answers_or_on_everything(
    train_on_inputs: bool, trained: Train, sft_flags: list[object], text_llama_dir: Path, pairs_file: Path
) -> None:
    """A step over the whole set: the loss is the mean over its target tokens, worked out here row by row."""
    flags = ["--train_on_inputs", train_on_inputs, "--per_device_train_batch_size", 12, "--max_steps", 1]
    out = trained("sft", *sft_flags, *flags)
    model = AutoModelForCausalLM.from_pretrained(text_llama_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_llama_dir)
    total, count = 0.0, 0
    for row in map(json.loads, pairs_file.read_text().splitlines()):
        prompt = tokenizer(row["question"]).input_ids
        ids = torch.tensor([prompt + tokenizer(row["chosen"]).input_ids + [tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[:, : 0 if train_on_inputs else len(prompt)] = -100
        targets = int((labels[:, 1:] != -100).sum())
        total += model(ids, labels=labels).loss.item() * targets
        count += targets
    assert losses(out)[0] == pytest.approx(total / count, abs=1e-4)


def test_concatenation_fills_blocks_and_drops_the_rest(
    trained: Train, sft_flags: list[object], text_llama_dir: Path, pairs_file: Path
) -> None:
    flags = ["--max_seq_length", 64, "--per_device_train_batch_size", 1, "--num_train_epochs", 1]
    out = trained("sft", *sft_flags, *flags, "--max_steps", -1, "--dataset_concatenation")
    tokenizer = AutoTokenizer.from_pretrained(text_llama_dir)
    rows = map(json.loads, pairs_file.read_text().splitlines())
    tokens = sum(len(tokenizer(row["question"] + row["chosen"]).input_ids) + 1 for row in rows)
    # prompt and answer are tokenized apart, and no merge of this tokenizer crosses from "?" to "T"
    assert len(losses(out)) == tokens // 64


@pytest.mark.parametrize(
    "flags",
    [
        ("--packing",),
        ("--pad_to_max_length",),
        ("--gradient_checkpointing",),
        ("--group_by_length",),
        ("--gradient_accumulation_steps", 3, "--per_device_train_batch_size", 4),
        ("--preprocessing_num_workers", 2),
        ("--keep_in_memory",),
    ],
    ids=lambda flags: flags[0].strip("-"),
)
def test_how_rows_are_laid_out_changes_no_loss(
    flags: tuple[object, ...], trained: Train, sft_flags: list[object], whole_set_losses: list[float]
) -> None:
    changed = trained("sft", *sft_flags, *WHOLE_SET, *flags)
    assert losses(changed) == pytest.approx(whole_set_losses, abs=2e-4)


def test_padding_to_the_maximum_pads_to_the_maximum(workplace: Path, sft_flags: list[object]) -> None:
    argv = [*map(str, sft_flags), "--output_dir", "out", "--pad_to_max_length", "--max_seq_length", "77"]
    settings = parse_sft(argv)
    shapes = shape_policy(Session.open("sft", settings, argv), settings, train=None, model=None)
    assert shapes.may_vary
    assert {shapes.pad_length(longest) for longest in (1, 50, 77)} == {77}


def test_the_command_line_beats_the_file_and_a_runs_own_config_gives_the_run_again(
    trained: Train, run: Callable[..., Any], sft_flags: list[object], workplace: Path
) -> None:
    names, values = sft_flags[::2], sft_flags[1::2]
    settings = {str(name).removeprefix("--"): value for name, value in zip(names, values, strict=True)}
    settings |= {"model_name_or_path": str(settings["model_name_or_path"]), "learning_rate": 0.5, "seed": 3}
    settings["train_file"] = str(settings["train_file"])
    Path("sft.yaml").write_text(yaml.safe_dump({"training": settings}))
    out = trained("sft", "--config", "sft.yaml", "--learning_rate", 0.01, output="first")
    expected = trained("sft", *sft_flags, "--seed", 3, output="second")
    assert losses(out) == losses(expected)
    again = trained("sft", "--config", "first/config.yaml", output="again")
    assert losses(again) == losses(expected)


def test_a_json_file_may_be_the_only_argument(
    run: Callable[..., Any], sft_flags: list[object], workplace: Path
) -> None:
    names, values = sft_flags[::2], sft_flags[1::2]
    settings = {str(name).removeprefix("--"): str(value) for name, value in zip(names, values, strict=True)}
    Path("args.json").write_text(json.dumps({**settings, "output_dir": "from_json"}))
    outcome = run("sft", "args.json")
    assert outcome.status == 0, outcome.err
    assert len(losses(Path("from_json"))) == 2


def test_a_dry_run_checks_everything_and_leaves_nothing(
    run: Callable[..., Any], sft_flags: list[object], workplace: Path
) -> None:
    outcome = run("sft", *sft_flags, "--output_dir", "out", "--dry_run")
    assert outcome.status == 0
    assert "12 of 12 rows kept" in outcome.err
    assert "nothing was trained" in outcome.err
    assert list(workplace.iterdir()) == []


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(
    trained: Train, sft_flags: list[object], workplace: Path
) -> None:
    flags = ["--max_steps", 4, "--save_steps", 2, "--lora_dropout", 0.1]
    whole = trained("sft", *sft_flags, *flags, output="whole")
    killed = workplace / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoint-4")
    (killed / "adapter_model.safetensors").unlink()
    trained("sft", *sft_flags, *flags, "--resume_from_checkpoint", output="killed")
    expected, found = (load_file(directory / "adapter_model.safetensors") for directory in (whole, killed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(killed) == losses(whole)


def test_overwriting_removes_earlier_runs_and_nothing_else(
    run: Callable[..., Any], trained: Train, sft_flags: list[object]
) -> None:
    out = trained("sft", *sft_flags, "--save_steps", 1)
    (out / "notes.txt").write_text("mine")
    before = sorted(out.rglob("*"))
    refused = run("sft", *sft_flags, "--output_dir", out)
    assert (refused.status, sorted(out.rglob("*"))) == (2, before)
    assert "--overwrite_output_dir" in refused.err
    again = run("sft", *sft_flags, "--output_dir", out, "--overwrite_output_dir", "--save_steps", 2)
    assert again.status == 0, again.err
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(losses(out)) == 2


def test_special_tokens_become_single_tokens_of_model_and_tokenizer(
    trained: Train, sft_flags: list[object], text_llama_dir: Path
) -> None:
    out = trained("sft", *sft_flags, "--full_finetune", "--special_tokens", "<|user|>", "<|bot|>")
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("<|user|>Hi<|bot|>").input_ids
    size = len(AutoTokenizer.from_pretrained(text_llama_dir))
    assert (ids[0], ids[-1]) == (size, size + 1)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hi"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_special_tokens_survive_in_an_adapter_and_its_merge(
    trained: Train, run: Callable[..., Any], sft_flags: list[object], text_llama_dir: Path
) -> None:
    out = trained("sft", *sft_flags, "--special_tokens", "<|user|>")
    merged = run("merge", "--adapter_model_name", out, "--output_name", "merged")
    assert merged.status == 0, merged.err
    tokenizer, model = (kind.from_pretrained("merged") for kind in (AutoTokenizer, AutoModelForCausalLM))
    ids = torch.tensor([tokenizer("<|user|>Hi").input_ids])
    assert ids[0, 0] == len(AutoTokenizer.from_pretrained(text_llama_dir))
    assert torch.isfinite(model(ids).logits).all()


def test_the_configuration_comes_from_config_name(
    trained: Train, sft_flags: list[object], text_llama_dir: Path, workplace: Path
) -> None:
    config = json.loads((text_llama_dir / "config.json").read_text())
    other = workplace / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    plain = trained("sft", *sft_flags, "--full_finetune", output="plain")
    changed = trained("sft", *sft_flags, "--full_finetune", "--config_name", other, output="changed")
    assert losses(changed) != losses(plain)
    assert json.loads((changed / "config.json").read_text())["hidden_act"] == "relu"


def test_summaries_and_articles_are_cut_each_to_its_own_length(
    trained: Train, sft_flags: list[object], text_llama_dir: Path, workplace: Path
) -> None:
    """What is trained on is what completion trains on after the cut is made by hand."""
    tokenizer = AutoTokenizer.from_pretrained(text_llama_dir)
    articles = [f"Apples are {word} and good. " * 6 for word in ("red", "green", "ripe", "cheap")]
    long = [{"article": text.strip(), "highlights": text.upper().strip()} for text in articles]
    short = [
        {
            "article": tokenizer.decode(tokenizer(row["article"]).input_ids[:20]),
            "highlights": tokenizer.decode(tokenizer(row["highlights"]).input_ids[:9]),
        }
        for row in long
    ]
    data = {
        name: write_rows(workplace / f"{name}.jsonl", rows)
        for name, rows in (("long", long), ("short", short))
    }
    lengths = ["--max_source_length", 20, "--max_target_length", 9]
    flags = [*sft_flags, "--task", "summarization"]
    cut = trained("sft", *flags, "--train_file", data["long"], *lengths, output="cut")
    by_hand = trained("sft", *flags, "--train_file", data["short"], output="by_hand")
    uncut = trained("sft", *flags, "--train_file", data["long"], output="uncut")
    assert losses(cut) == losses(by_hand)
    assert losses(cut) != losses(uncut)


def test_overwrite_cache_reads_no_cached_tokens(
    trained: Train, sft_flags: list[object], workplace: Path
) -> None:
    cache = ["--dataset_cache_directory", workplace / "cache"]
    first = trained("sft", *sft_flags, *cache, output="first")
    cached = list((workplace / "cache").rglob("cache-*.arrow"))
    assert cached
    for file in cached:
        file.write_bytes(b"damaged")
    again = trained("sft", *sft_flags, *cache, "--overwrite_cache", output="again")
    assert losses(again) == losses(first)


def test_frozen_weights_are_held_in_torch_dtype_and_trained_ones_in_fp32(
    workplace: Path, sft_flags: list[object]
) -> None:
    def dtypes(*flags: str) -> tuple[torch.dtype | str, torch.dtype | str]:
        argv = [*map(str, sft_flags), "--output_dir", "out", "--bf16", "True", *flags]
        session = Session.open("sft", parse_sft(argv), argv)
        trained_model = session.load_options("--model_name_or_path", trained=True)
        return trained_model.dtype, session.load_options("--reward_model_name", trained=False).dtype

    assert dtypes("--torch_dtype", "float32") == (torch.float32, torch.float32)
    assert dtypes("--torch_dtype", "bfloat16") == (torch.bfloat16, torch.bfloat16)
    assert dtypes("--torch_dtype", "bfloat16", "--full_finetune") == (torch.float32, torch.bfloat16)


def test_local_data_stream_as_they_are_read_without_the_flag(trained: Train, sft_flags: list[object]) -> None:
    assert losses(trained("sft", *sft_flags, "--streaming", output="streamed")) == losses(
        trained("sft", *sft_flags, output="read")
    )


def test_evaluation_alone_trains_nothing_and_reports_perplexity(
    trained: Train, sft_flags: list[object], pairs_file: Path
) -> None:
    out = trained("sft", *sft_flags, "--do_eval", "--validation_file", pairs_file)
    assert losses(out) == []
    assert not list(out.glob("*.safetensors"))
    found = [row for row in metrics(out) if "eval_loss" in row]
    assert found
    assert found[-1]["eval_perplexity"] == pytest.approx(math.exp(found[-1]["eval_loss"]), rel=1e-6)


@pytest.mark.parametrize("flag", ["--do_lm_eval", "--num_beams=2"])
def test_a_flag_without_effect_says_so(
    flag: str, run: Callable[..., Any], sft_flags: list[object], workplace: Path
) -> None:
    outcome = run("sft", *sft_flags, "--output_dir", "out", "--dry_run", flag)
    assert outcome.status == 0
    assert f"{flag.split('=')[0]}: no effect here" in outcome.err


@pytest.mark.parametrize("bf16", [True, False])
def test_precision_is_that_of_the_flags_and_not_of_the_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no" if bf16 else "bf16")
    flags = ["--model_name_or_path", "m", "--output_dir", str(tmp_path), "--dataset_name", "some/set"]
    run = parse_sft([*flags, "--bf16", str(bf16), "--device", "cpu", "--report_to", "none"])
    args, precision, _ = make_training_arguments(run, CPUBackend(), {})
    # what accelerate is told: by newer arguments themselves, by older ones through the environment
    told = getattr(args, "mixed_precision", None) or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    assert told == precision.autocast == ("bf16" if bf16 else "no")
