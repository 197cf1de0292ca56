"""What a stage is told to take: against measured memory, against closed forms, and of few layers against all."""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from tiny_models import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_hw.algorithms.losses import cross_entropy_sum
from rlhf_hw.arguments.peft import PeftArguments
from rlhf_hw.arguments.ppo import parse_ppo
from rlhf_hw.arguments.reward import parse_reward
from rlhf_hw.arguments.sft import parse_sft
from rlhf_hw.cli.main import main
from rlhf_hw.estimate.advice import largest_micro_batch, remedies, usable, with_micro_batch
from rlhf_hw.estimate.fakes import causal_model, classifier
from rlhf_hw.estimate.known_models import KNOWN
from rlhf_hw.estimate.roles import Conditions
from rlhf_hw.estimate.stages import Estimate, Phase, estimate
from rlhf_hw.models.positions import every_position, logits_at

SIZES = "hidden=64,intermediate=128,layers=5,heads=4,kv_heads=2,vocab=320"
PARSERS = {"sft": parse_sft, "reward": parse_reward, "ppo": parse_ppo}
NEEDED = {
    "sft": "--output_dir x --dataset_name x --max_seq_length 48",
    "reward": "--output_dir x --max_length 48",
    "ppo": "--reward_model_name x --max_prompt_length 24 --output_max_length 16",
}


def conditions(**changes: Any) -> Conditions:
    known = {"card": "a card", "memory": 1.0, "processes": 1, "autocast": "no"}
    return Conditions(**{**known, "frozen_dtype": torch.float32, "attention": "sdpa", **changes})


def estimated(stage: str, flags: str, sizes: str = SIZES, **changes: Any) -> Estimate:
    run = PARSERS[stage](f"--model_name_or_path x {NEEDED[stage]} {flags}".split())
    return estimate(run, conditions(**changes), sizes)


def phase(found: Estimate, name: str) -> Phase:
    return next(phase for phase in found.phases if phase.name == name)


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("sft", "--full_finetune --gradient_checkpointing --gradient_accumulation_steps 2"),
        ("reward", "--gradient_checkpointing"),
        ("ppo", "--full_finetune --value_model separate --mini_batch_size 2"),
        ("ppo", "--reward_model_name x --value_model separate --gradient_checkpointing --mini_batch_size 2"),
    ],
)
def test_few_layers_tell_what_all_layers_take(
    stage: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bf16 = {"autocast": "bf16", "frozen_dtype": torch.bfloat16}
    few = estimated(stage, flags, **bf16)
    monkeypatch.setattr("rlhf_hw.estimate.roles.are_layers_alike", lambda config: False)
    assert [(p.name, p.total) for p in few.phases] == [
        (p.name, p.total) for p in estimated(stage, flags, **bf16).phases
    ]


def test_an_update_takes_what_is_measured() -> None:
    """Activations of a step on this CPU: the resident set's high-water mark over its level before. Within 15%."""
    rows, length = 64, 512  # tensors of 32 MiB and more: the C library gives such back when they are freed
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, vocab_size=512
    )
    model = LlamaForCausalLM(config)
    ids, mask = torch.randint(512, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    mask[0, -1] = 0
    measured = 0
    for count in (1, rows):  # the first loads kernels too
        model.zero_grad()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        where = every_position(count, length - 1, ids.device)
        logits = logits_at(model, where, input_ids=ids[:count], attention_mask=mask[:count]).logits
        loss = cross_entropy_sum(logits, ids[:count, 1:].reshape(-1))
        del logits
        loss.backward()
        measured = _resident("VmHWM") - before
    flags = f"--full_finetune --per_device_train_batch_size {rows} --max_seq_length {length}"
    found = phase(estimated("sft", flags, "hidden=256,intermediate=512,layers=1,heads=4,vocab=512"), "update")
    told = sum(found.terms.get(term, 0) for term in ("activations", "logits", "gradients"))
    assert told == pytest.approx(measured, rel=0.15)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def test_terms_with_a_closed_form_have_its_value() -> None:
    found = estimated("sft", "--full_finetune")
    count = found.roles["policy"].parameters
    step = phase(found, "optimizer step").terms
    assert (step["policy weights"], step["gradients"], step["optimizer state"]) == (
        4 * count,
        4 * count,
        8 * count,
    )
    flags = "--batch_size 8 --mini_batch_size 2 --max_prompt_length 4 --output_max_length 196"
    rollout = phase(estimated("ppo", flags), "rollout").terms
    keys_and_values = 2 * 5 * 8 * (4 + 196) * 2 * 16 * 4  # layers, rows, tokens, heads, their width, bytes
    assert rollout["KV cache"] == pytest.approx(keys_and_values, rel=0.01)


def test_zero_stages_share_what_they_say() -> None:
    flags = "--full_finetune --deepspeed --zero_stage {}"
    alone = estimated("sft", "--full_finetune")
    count = alone.roles["policy"].parameters
    for stage, weights in {1: 4, 2: 4, 3: 1}.items():
        step = phase(estimated("sft", flags.format(stage), processes=4), "optimizer step").terms
        assert step["optimizer state"] == 2 * count
        assert step["policy weights"] == weights * count
        assert step["gradients"] == 2 * count  # its share, and the same end to end


def test_asking_about_deepspeed_needs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlhf_hw.arguments.sharding.find_spec", lambda name: None)
    flags = f"--full_finetune --deepspeed --zero_stage 2 --sizes {SIZES} --max_seq_length 48"
    assert main(f"estimate sft {flags} --card h100-80 --processes 4 --no_advice --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["processes"] == 4
    with pytest.raises(SystemExit):  # a run does
        parse_sft(f"--model_name_or_path x {NEEDED['sft']} --full_finetune --deepspeed".split())
    assert "DeepSpeed is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("peft", get_args(get_args(get_type_hints(PeftArguments)["peft"])[0]))
def test_every_kind_of_adapter_is_estimated(peft: str) -> None:
    layers = "--adapter_layers 3" if peft == "llama_adapter" else ""
    found = estimated("sft", f"--peft {peft} {layers}", autocast="bf16", frozen_dtype=torch.bfloat16)
    policy = found.roles["policy"]
    frozen = policy.all_parameters - policy.parameters
    assert policy.parameters > 0
    assert phase(found, "update").terms["policy weights"] == policy.trained + policy.frozen
    assert policy.frozen == (0 if peft == "none" else 2 * frozen)
    assert phase(found, "optimizer step").terms["optimizer state"] == 8 * policy.parameters


def test_known_names_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["estimate", "--help"])
    told = capsys.readouterr().out
    assert [name for name in KNOWN if name not in told] == []


def test_adapters_and_checkpointing_and_four_bits_save_memory() -> None:
    bf16 = {"autocast": "bf16", "frozen_dtype": torch.bfloat16}
    flags = (
        "--full_finetune",
        "--peft lora",
        "--peft lora --gradient_checkpointing",
        "--qlora --gradient_checkpointing --per_device_train_batch_size 1",
    )
    peaks = [estimated("sft", each, **bf16).peak for each in flags]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    run = parse_sft(f"--model_name_or_path x {NEEDED['sft']} --full_finetune".split())
    small = conditions(memory=24 / 1024)
    found = largest_micro_batch(run, small, SIZES)
    assert found is not None
    size, there = found
    assert there.peak <= usable(small) < estimate(with_micro_batch(run, size + 1), small, SIZES).peak


def test_what_to_change_is_said_until_it_fits() -> None:
    run = parse_sft(f"--model_name_or_path x {NEEDED['sft']} --full_finetune".split())
    steps = remedies(run, conditions(memory=3.5 / 1024), SIZES)
    assert [step.fits for step in steps] == [False] * (len(steps) - 1) + [True]
    assert any("lora" in step.flags for step in steps)


def test_a_known_model_has_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    words = "estimate ppo --model_name opt-125m --card a100-40 --json --no_advice --mini_batch_size 4"
    assert main(words.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["roles"]["policy"]["parameters"] - told["roles"]["policy"]["trained"] == 125_239_296
    assert told["fits"]
    assert told["peak"] == max(phase["total"] for phase in told["phases"].values())
    assert set(told["phases"]) == {"rollout", "score", "forward", "update", "optimizer step"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dpo"], "no stage 'dpo'"),
        (["sft", "--model_name_or_path", "opt-125m", "--card", "tpu"], "--card: got 'tpu'"),
        (["sft", "--sizes", "hidden=64,layers=x"], "--sizes: got 'layers=x'"),
        (["sft", "--sizes", "hidden=64,layers=²"], "--sizes: got 'layers=²'"),
        (["sft", "--sizes", "hidden=6,layers=2,heads=2,vocab=10"], "--sizes: a head of width 3"),
        (["sft", "--model_name_or_path", "opt-125m", "--memory", "nan"], "--memory: got nan"),
        (["sft", "--model_name_or_path", "opt-125m", "--memory", "inf"], "--memory: got inf"),
        (
            ["sft", "--sizes", SIZES, "--peft", "prefix", "--gradient_checkpointing"],
            "--peft prefix with --grad",
        ),
        (
            ["ppo", "--sizes", SIZES, "--share_backbone", "true", "--full_finetune"],
            "--share_backbone true: the reference needs weights of its own: --peft none",
        ),
        (
            [
                "ppo",
                "--model_name",
                "opt-125m",
                "--reward_model_name",
                "opt-350m",
                "--share_backbone",
                "true",
            ],
            "--share_backbone true: the reward needs weights of its own: opt-350m is not opt-125m",
        ),
        (["sft", "--sizes", "hidden=64"], "--sizes: layers, heads, vocab missing"),
        (["sft", "--model_name_or_path", "./nowhere"], "there is no directory ./nowhere"),
        (["sft", "--model_name_or_path", "opt-125m", "--optim", "lomo"], "--optim lomo"),
        (["sft", "--model_name_or_path", "opt-125m", "--processes", "0"], "--processes: got 0"),
        (["sft", "--model_name_or_path", "opt-125m", "--wibble"], "--wibble"),
    ],
)
def test_bad_input_is_one_line(words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["estimate", *words])
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr().err
    assert status == 2
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_models_hold_weights_of_the_precision_that_is_asked_for(family: str) -> None:
    """transformers 4.55 makes the decoder inside a classifier in its configuration's; positions stay in fp32."""
    config = tiny_model(family).config
    config.dtype = torch.float32
    causal = causal_model(config, torch.bfloat16, "eager")
    assert {weight.dtype for weight in causal.parameters()} == {torch.bfloat16}
    made = classifier(config, torch.bfloat16, "eager")
    kinds = {weight.dtype for name, weight in made.named_parameters() if not name.startswith("score")}
    assert kinds == {torch.bfloat16}
    assert made.score.weight.dtype == torch.float32
    frequencies = [buffer for name, buffer in made.named_buffers() if name.endswith("inv_freq")]
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)


def test_processes_on_a_cpu_share_the_machines_memory(capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        f"estimate sft --model_name_or_path x {NEEDED['sft']} --sizes {SIZES} --device cpu --json --no_advice"
    )
    memories = []
    for flags in ("", "--processes 2", "--processes 2 --memory 3"):
        assert main([*command.split(), *flags.split()]) == 0
        memories.append(json.loads(capsys.readouterr().out)["memory"])
    assert memories[1] == pytest.approx(memories[0] / 2, rel=1e-6)
    assert memories[2] == 3 * 2**30
