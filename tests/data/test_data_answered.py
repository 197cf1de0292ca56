"""Answers of a policy, tokenized for a reward model, are the sequences that reward modelling saw."""

import copy
import json

import pytest
from datasets import Dataset

from rlhf_hw.data.example import CANONICAL_FEATURES, Example, Message, to_row
from rlhf_hw.data.tokenize import answered, for_prompts, for_reward

CHAT = (Message("system", "Be kind."), Message("user", "How are you?"))
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def canonical(prompt, chosen, rejected):
    return Dataset.from_list([to_row(Example(prompt, chosen, rejected, "test"))], features=CANONICAL_FEATURES)


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize(
    ("prompt", "answer"), [("Human: hi Assistant:", " well, and you?"), (CHAT, "Well, and you?")]
)
def test_an_ended_answer_is_the_sequence_of_reward_modelling(tiny_tokenizer, template, prompt, answer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    pairs = canonical(prompt, answer, "no")
    expected = for_reward(pairs, tokenizer, max_length=512).dataset[0]["chosen_input_ids"]
    row = for_prompts(pairs, tokenizer, max_prompt_length=512).dataset[0]
    assert answered([row], [answer], [True], tokenizer) == [expected]


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("prompt", ["Human: hi Assistant:", CHAT])
def test_a_cut_off_answer_is_the_beginning_of_the_ended_one(tiny_tokenizer, template, prompt):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    row = for_prompts(canonical(prompt, "x", None), tokenizer, max_prompt_length=512).dataset[0]
    whole, cut = (answered([row], ["well and you"], [ended], tokenizer)[0] for ended in (True, False))
    assert len(cut) < len(whole)
    assert whole[: len(cut)] == cut
    assert tokenizer.eos_token_id not in cut


def test_the_prompt_before_any_template_is_kept(tiny_tokenizer):
    row = for_prompts(canonical(CHAT, "x", None), tiny_tokenizer, max_prompt_length=512).dataset[0]
    assert row["prompt_is_chat"]
    assert json.loads(row["canonical_prompt"])[1] == {"role": "user", "content": "How are you?"}
