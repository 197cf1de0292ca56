"""A file of instructions, answered: by whole models, PEFT adapters and LoRA state dicts; killed and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from run_results import write_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_hw.data.formats.alpaca import PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT
from rlhf_hw.evaluation.instructions import end_of
from rlhf_hw.evaluation.journal import Journal

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "instruction": "Name a colour" + " or two" * i,
            "input": "Only warm ones." * (i % 2),
            "output": f"Red {i}.",
        }
        for i in range(5)
    ]
    return write_rows(tmp_path_factory.mktemp("instructions") / "eval.jsonl", rows)


@pytest.fixture(scope="session")
def lora(text_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same LoRA weights as a PEFT directory, as PEFT's state dict, and as loralib's."""
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(text_llama_dir), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    base = tmp_path_factory.mktemp("lora")
    model.save_pretrained(base / "peft")
    state = peft.get_peft_model_state_dict(model)
    torch.save(state, base / "peft.bin")
    plain = {name.removeprefix("base_model.model.").removesuffix(".weight"): w for name, w in state.items()}
    assert any(name.endswith("q_proj.lora_A") for name in plain)
    torch.save(plain, base / "loralib.bin")
    torch.save({**plain, "model.layers.9.self_attn.q_proj.lora_A": torch.zeros(4, 32)}, base / "strange.bin")
    (base / "broken.bin").write_bytes(b"no weights")
    return {name: base / name for name in ("peft", "peft.bin", "loralib.bin", "strange.bin", "broken.bin")}


def flags(model: Path, instructions: Path, output: str = "out.json") -> list[object]:
    return [
        *(
            "--model_name_or_path",
            model,
            "--input_path",
            instructions,
            "--output_path",
            output,
            "--device",
            "cpu",
        ),
        *("--bsz", 2, "--max_new_tokens", 6, "--dtype", "float32"),
    ]


def test_answers_are_the_models_own_and_the_reference_is_kept(
    run: Run, text_llama_dir: Path, instructions: Path
) -> None:
    assert run("infer", *flags(text_llama_dir, instructions)).status == 0
    rows = json.loads(Path("out.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(text_llama_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_llama_dir)
    for given, row in zip(instructions.read_text().splitlines(), rows, strict=True):
        asked = json.loads(given)
        prompt = (PROMPT_WITH_INPUT if asked["input"] else PROMPT_WITHOUT_INPUT).format(**asked)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        assert row == {
            **asked,
            "output_1": asked["output"],
            "output_2": text,
            "output": text,
            "generator": text_llama_dir.name,
        }
    assert not list(Path().glob("*.partial*"))


def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(
    run: Run, text_llama_dir: Path, instructions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(text_llama_dir, "model"))
    sampled = [*flags(model, instructions), "--temperature", 1, "--seed", 3]
    assert run("infer", *sampled, "--output_path", "whole.json").status == 0
    kept, add = [], Journal.add

    def killed(journal: Journal, row: int, result: dict[str, Any]) -> None:
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(row)
        add(journal, row, result)

    monkeypatch.setattr(Journal, "add", killed)
    assert run("infer", *sampled).status == 130
    assert not Path("out.json").exists()
    with Path("out.json.partial.jsonl").open("a") as journal:
        journal.write('{"row": 4, "ans')  # the line that a killed process was writing
    monkeypatch.setattr(Journal, "add", add)
    refused = run("infer", *sampled, "--seed", 4)
    assert refused.status == 2
    assert "was begun with seed 3, now it is 4" in refused.err
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    save_file({name: tensor + 1e-3 for name, tensor in load_file(weights).items()}, weights)
    refused = run("infer", *sampled)  # answers of two models are not mixed
    assert refused.status == 2
    assert "was begun with the model's files sha256 " in refused.err
    assert "give --overwrite" in refused.err
    weights.write_bytes(before)
    outcome = run("infer", *sampled, "--bsz", 3)
    assert outcome.status == 0, outcome.err
    assert "3 of 5 are answered already" in outcome.out
    assert Path("out.json").read_text() == Path("whole.json").read_text()


def test_lora_weights_answer_alike_in_every_form(
    run: Run, text_llama_dir: Path, instructions: Path, lora: dict[str, Path]
) -> None:
    def texts(name: str, *more: object) -> list[str]:
        outcome = run("infer", *flags(lora.get(name, text_llama_dir), instructions, f"{name}.json"), *more)
        assert outcome.status == 0, outcome.err
        return [row["output"] for row in json.loads(Path(f"{name}.json").read_text())]

    base = texts("base")
    adapter = texts("peft", "--lora", "--base_model_path", text_llama_dir)
    assert adapter != base
    for name in ("peft.bin", "loralib.bin"):
        assert texts(name, "--lora", "--base_model_path", text_llama_dir) == adapter
    halved = texts(
        "loralib.bin", "--lora", "--base_model_path", text_llama_dir, "--lora_alpha", 1, "--overwrite"
    )
    assert halved != adapter


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("loralib.bin", ["--lora"], "--base_model_path: required"),
        ("loralib.bin", ["--base_model_path", "BASE"], "give --lora"),
        ("loralib.bin", ["--lora", "--base_model_path", "BASE", "--lora_r", 8], "has rank 4"),
        (
            "strange.bin",
            ["--lora", "--base_model_path", "BASE"],
            "model.layers.9.self_attn.q_proj.lora_A, which do not fit",
        ),
        ("broken.bin", ["--lora", "--base_model_path", "BASE"], "no file of weights"),
        ("BASE", ["--lora"], "--lora: "),
        ("./nowhere", [], "there is no directory ./nowhere"),
        ("BASE", ["--max_new_tokens", 4000], "exceed the model's context of 2048"),
        ("BASE", ["--top_p", 0], "--top_p: got 0"),
        ("BASE", ["--input_path", "nowhere.json"], "--input_path: there is no file nowhere.json"),
        ("BASE", ["--input_path", "odd.jsonl"], "row 2: the columns are text; it needs instruction"),
        ("BASE", ["--output_path", "odd.jsonl"], "is there already"),
    ],
)
def test_bad_input_is_one_line(
    name: str,
    more: list[object],
    said: str,
    run: Run,
    text_llama_dir: Path,
    instructions: Path,
    lora: dict[str, Path],
) -> None:
    write_rows(Path("odd.jsonl"), [{"instruction": "a"}, {"text": "b"}])
    model = lora.get(name, text_llama_dir if name == "BASE" else Path(name))
    if name.startswith("."):
        model = name  # type: ignore[assignment]
    more = [text_llama_dir if word == "BASE" else word for word in more]
    outcome = run("infer", *flags(model, instructions), *more)
    assert outcome.status == 2, outcome.err
    errors = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in outcome.err


def test_a_prompt_that_is_too_long_keeps_its_end_and_the_tokenizers_own_beginning() -> None:
    assert end_of([1, 5, 6, 7], 3, [1]) == [1, 6, 7]
    assert end_of([1, 5, 6, 7], 4, [1]) == [1, 5, 6, 7]
    assert end_of([5, 6, 7], 2, [1]) == [6, 7]  # a chat template that writes none
    assert end_of([5, 6, 7], 2, []) == [6, 7]
    assert end_of([1, 5, 6], 1, [1]) == [1]
