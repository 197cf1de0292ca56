"""Any directory that a stage has written can be the start of the next stage."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_hw.errors import UserError
from rlhf_hw.models.adapters import check_trains
from rlhf_hw.models.load import (
    LoadOptions,
    adapter_base,
    check_model_path,
    load_policy,
    load_reward_model,
    load_sequence_classifier,
    load_tokenizer,
    with_adapter_merged,
)
from rlhf_hw.models.merge import merge_adapter
from rlhf_hw.models.reward_model import RewardModel, RewardStatistics

IDS = torch.tensor([[5, 6, 7, 8, 9], [11, 30, 31, 4, 2]])
MASK = torch.ones_like(IDS)
NOT_MERGEABLE = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}


def trained_lora(model: Any, task: str) -> Any:
    """LoRA as after some training: no longer neutral."""
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4, init_lora_weights=False)).eval()


def policy(path: Path | str) -> Any:
    return load_policy(str(path), LoadOptions()).eval()


def reward(path: Path | str) -> RewardModel:
    return load_reward_model(str(path), LoadOptions(), 0).eval()


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.fixture
def base(make_model: Callable[..., Any], architecture: str, tmp_path: Path, word_tokenizer: Any) -> str:
    make_model(architecture).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    return str(tmp_path / "base")


@torch.no_grad()
def test_adapters_on_adapters_are_read_back_as_they_were_trained(base: str, tmp_path: Path) -> None:
    """The three stages with LoRA, each started from the directory of the one before."""
    sft = trained_lora(policy(base), "CAUSAL_LM")
    sft.save_pretrained(tmp_path / "sft")
    same(policy(tmp_path / "sft")(IDS).logits, sft(IDS).logits)

    rm = RewardModel(
        trained_lora(load_sequence_classifier(str(tmp_path / "sft"), LoadOptions(), 0), "SEQ_CLS")
    ).eval()
    rm.save_pretrained(tmp_path / "rm")
    same(reward(tmp_path / "rm")(IDS, MASK), rm(IDS, MASK))

    ppo = trained_lora(policy(tmp_path / "sft"), "CAUSAL_LM")
    with ppo.disable_adapter():
        same(ppo(IDS).logits, sft(IDS).logits)
    ppo.save_pretrained(tmp_path / "ppo")
    same(policy(tmp_path / "ppo")(IDS).logits, ppo(IDS).logits)


def test_weights_with_an_adapter_merged_train_as_those_of_a_whole_model(base: str, tmp_path: Path) -> None:
    """Also with an adapter on an adapter; what was frozen before the adapter came stays frozen."""
    trained_lora(policy(base), "CAUSAL_LM").save_pretrained(tmp_path / "sft")
    frozen = load_sequence_classifier(str(tmp_path / "sft"), LoadOptions(), 0)
    trained_lora(frozen, "SEQ_CLS").save_pretrained(tmp_path / "rm")
    policies = [policy(path) for path in (base, tmp_path / "sft")]
    classifiers = [load_sequence_classifier(str(path), LoadOptions(), 0) for path in (base, tmp_path / "rm")]
    for whole, merged in (policies, classifiers):
        expected = {name: weight.requires_grad for name, weight in whole.named_parameters()}
        assert {name: weight.requires_grad for name, weight in merged.named_parameters()} == expected
        assert any(expected.values())
    half = policy(base)
    half.get_input_embeddings().requires_grad_(False)
    merged = with_adapter_merged(half, str(tmp_path / "sft"), "--model_name")
    assert not merged.get_input_embeddings().weight.requires_grad
    assert any(weight.requires_grad for weight in merged.parameters())


def test_a_model_of_which_nothing_trains_is_refused(tiny_llama_dir: str) -> None:
    model = policy(tiny_llama_dir)
    check_trains(model, tiny_llama_dir)
    with pytest.raises(UserError, match="none of the LlamaForCausalLM's weights is trained"):
        check_trains(model.requires_grad_(False), tiny_llama_dir)


def test_a_relative_base_is_found_from_another_working_directory(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained in steps/one on ../../base, then in steps/two on ../one/out, and chatted with from elsewhere."""
    for step in ("one", "two"):
        (tmp_path / "steps" / step).mkdir(parents=True)
    make_model().save_pretrained(tmp_path / "base")
    for step, base in (("one", "../../base"), ("two", "../one/out")):
        monkeypatch.chdir(tmp_path / "steps" / step)
        trained_lora(policy(base), "CAUSAL_LM").save_pretrained("out")
        assert adapter_base("out") == base
    expected = policy("out")(IDS).logits
    monkeypatch.chdir(tmp_path)
    check_model_path("steps/two/out", "--path")
    same(policy("steps/two/out")(IDS).logits, expected)
    (tmp_path / "steps" / "one").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is an adapter on \.\./one/out, and there is no such directory"):
        check_model_path("steps/two/out", "--path")


@torch.no_grad()
def test_a_reward_model_starts_from_the_backbone_of_the_sft_adapter(base: str, tmp_path: Path) -> None:
    sft = trained_lora(policy(base), "CAUSAL_LM")
    sft.save_pretrained(tmp_path / "sft")
    model = RewardModel(load_sequence_classifier(str(tmp_path / "sft"), LoadOptions(), 0)).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    backbone = peft.PeftModel.from_pretrained(plain, tmp_path / "sft").merge_and_unload().base_model
    same(model.hidden_states(IDS, MASK), backbone(IDS).last_hidden_state)


@torch.no_grad()
def test_merged_directories_need_no_peft_and_predict_the_same(base: str, tmp_path: Path) -> None:
    sft = trained_lora(policy(base), "CAUSAL_LM")
    sft.save_pretrained(tmp_path / "sft")
    ppo = trained_lora(policy(tmp_path / "sft"), "CAUSAL_LM")
    ppo.save_pretrained(tmp_path / "ppo")
    assert merge_adapter(str(tmp_path / "ppo"), str(tmp_path / "merged"), LoadOptions()) == "CAUSAL_LM"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    same(plain(IDS).logits, ppo(IDS).logits)


def test_the_merged_directory_has_the_nearest_tokenizer(tiny_llama_dir: str, tmp_path: Path) -> None:
    """Neither adapter brings one: the base's is taken."""
    trained_lora(policy(tiny_llama_dir), "CAUSAL_LM").save_pretrained(tmp_path / "sft")
    trained_lora(policy(tmp_path / "sft"), "CAUSAL_LM").save_pretrained(tmp_path / "ppo")
    merge_adapter(str(tmp_path / "ppo"), str(tmp_path / "merged"), LoadOptions())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("w5 w6")["input_ids"] == [5, 6]


@torch.no_grad()
def test_a_merged_reward_model_keeps_its_head_and_statistics(base: str, tmp_path: Path) -> None:
    rm = RewardModel(trained_lora(load_sequence_classifier(base, LoadOptions(), 0), "SEQ_CLS")).eval()
    rm.save_pretrained(tmp_path / "rm")
    RewardStatistics(0.5, 2.0, 10).save(tmp_path / "rm")
    assert merge_adapter(str(tmp_path / "rm"), str(tmp_path / "merged"), LoadOptions()) == "SEQ_CLS"
    same(reward(tmp_path / "merged")(IDS, MASK), rm(IDS, MASK))
    assert RewardStatistics.load(tmp_path / "merged") == RewardStatistics(0.5, 2.0, 10)


@torch.no_grad()
def test_an_adapter_on_a_longer_vocabulary_is_loaded_with_it(base: str, tmp_path: Path) -> None:
    """`--special_tokens` lengthens the vocabulary before the adapter is put on."""
    model = policy(base)
    model.resize_token_embeddings(99)
    sft = trained_lora(model, "CAUSAL_LM")
    sft.save_pretrained(tmp_path / "sft")
    ids = torch.tensor([[5, 97, 6, 98]])
    same(policy(tmp_path / "sft")(ids).logits, sft(ids).logits)


@pytest.mark.parametrize("kind", NOT_MERGEABLE)
def test_adapters_that_are_no_weights_are_refused_by_name(
    tiny_llama_dir: str, tmp_path: Path, kind: str
) -> None:
    peft.get_peft_model(policy(tiny_llama_dir), NOT_MERGEABLE[kind]()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=f"--model_name: .*{kind}"):
        load_policy(str(tmp_path / "adapter"), LoadOptions(flag="--model_name"))
    with pytest.raises(UserError, match=kind):
        merge_adapter(str(tmp_path / "adapter"), str(tmp_path / "out"), LoadOptions())


def test_a_reward_adapter_is_no_policy(tiny_llama_dir: str, tmp_path: Path) -> None:
    model = trained_lora(load_sequence_classifier(tiny_llama_dir, LoadOptions(), 0), "SEQ_CLS")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--model_name: .*reward model"):
        load_policy(str(tmp_path), LoadOptions(flag="--model_name"))


def test_merging_refuses_what_is_no_adapter_and_a_full_directory(tiny_llama_dir: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        merge_adapter(tiny_llama_dir, str(tmp_path / "out"), LoadOptions())
    trained_lora(policy(tiny_llama_dir), "CAUSAL_LM").save_pretrained(tmp_path / "sft")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"--output_name: .*not empty"):
        merge_adapter(str(tmp_path / "sft"), str(tmp_path / "out"), LoadOptions())
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_paths_without_a_model_are_refused_before_loading(tmp_path: Path, tiny_llama_dir: str) -> None:
    check_model_path(tiny_llama_dir, "--model_name")
    check_model_path("someone/some-model", "--model_name")
    with pytest.raises(UserError, match=r"--model_name: .*without config\.json"):
        check_model_path(str(tmp_path), "--model_name")
    with pytest.raises(UserError, match="--model_name: there is no directory"):
        check_model_path(str(tmp_path / "nowhere"), "--model_name")


def test_a_broken_directory_is_one_line_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="--model_name: cannot load") as found:
        load_policy(str(tmp_path), LoadOptions(flag="--model_name"))
    assert "\n" not in str(found.value)


def test_weights_load_in_the_dtype_asked_for(tiny_llama_dir: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = load_policy(tiny_llama_dir, LoadOptions(dtype=dtype))
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_tokenizer_without_pad_token_gets_unknown_before_eos(tmp_path: Path, word_tokenizer: Any) -> None:
    bare = copy.deepcopy(word_tokenizer)
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "unknown")
    assert load_tokenizer(str(tmp_path / "unknown"), LoadOptions()).pad_token == "<unk>"
    bare.unk_token = None
    bare.save_pretrained(tmp_path / "none")
    assert load_tokenizer(str(tmp_path / "none"), LoadOptions()).pad_token == "</s>"
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "endless")
    with pytest.raises(UserError, match="no EOS token"):
        load_tokenizer(str(tmp_path / "endless"), LoadOptions())


def test_a_token_is_not_shown(tiny_llama_dir: str) -> None:
    assert "hf_secret" not in repr(LoadOptions(token="hf_secret"))
