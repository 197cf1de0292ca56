"""The demo's model from scratch: its size, its tokenizer, and that the same seed makes the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlhf_hw.demo.base_model import build_base_model, build_tokenizer, demo_texts, make_base


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(demo_texts())


def test_same_seed_makes_the_same_directory(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_base(str(tmp_path / name), seed=3)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_saved_model_loads_with_plain_transformers(tmp_path: Path) -> None:
    make_base(str(tmp_path), seed=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokenizer("Customer: How do I cook rice?\nAssistant:", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model(ids).logits, build_base_model(tokenizer, seed=3)(ids).logits)
    assert 2e6 <= model.num_parameters() <= 4e6


def test_another_seed_makes_another_model(tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = (build_base_model(tokenizer, seed).lm_head.weight for seed in (1, 2))
    assert not torch.equal(one, other)


def test_random_state_of_the_caller_is_untouched(tokenizer: PreTrainedTokenizerFast) -> None:
    before = torch.get_rng_state()
    build_base_model(tokenizer, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_special_tokens_are_distinct_and_never_added_silently(tokenizer: PreTrainedTokenizerFast) -> None:
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(special) == 3
    assert None not in special
    assert not special & set(tokenizer("Customer: Hello!\nAssistant:")["input_ids"])


@pytest.mark.parametrize(
    "text", ["Customer: Are tulips dry?\nAssistant: Yes.", "naïve  café\t漢字 🙂", " x\n\n"]
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompt_and_answer_tokenize_alike_together_and_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, answer = "Customer: Are tulips dry?\nAssistant:", " Of course, I am happy to help with tulips."
    together = tokenizer(prompt + answer)["input_ids"]
    assert together == tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]


def test_training_texts_fit_in_96_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert max(len(ids) for ids in tokenizer(demo_texts())["input_ids"]) < 96


def test_chat_template_renders_the_prompts_of_the_data(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "How do I cook rice?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "Customer: How do I cook rice?\nAssistant:"
    messages.append({"role": "assistant", "content": " Gently. "})
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == prompt + " Gently." + tokenizer.eos_token
