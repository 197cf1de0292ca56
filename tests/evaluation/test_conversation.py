"""A conversation: answers end where the next turn would begin, the oldest turns are forgotten, two models answer alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends import resolve
from rlhf_hw.data.example import Message
from rlhf_hw.errors import UserError
from rlhf_hw.evaluation import page
from rlhf_hw.evaluation.asked import Asked
from rlhf_hw.evaluation.conversation import Manner, fitting, said, until

GREEDY = Manner(max_new_tokens=6, temperature=0)


@pytest.fixture
def asked(text_llama_dir: Path) -> Asked:
    model = AutoModelForCausalLM.from_pretrained(text_llama_dir).eval()
    return Asked("tiny", model, AutoTokenizer.from_pretrained(text_llama_dir), resolve("cpu"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Blue, of course.\n\nHuman: And", "Blue, of course."),
        ("Blue Human: no", "Blue"),
        ("A Human being, a Humanist: yes. Hu", "A Human being, a Humanist: yes. Hu"),
        ("Human: at once", ""),
        ("spaces  stay \n where nothing follows", "spaces  stay \n where nothing follows"),
    ],
)
@pytest.mark.parametrize("width", [1, 3, 100])
def test_an_answer_ends_where_the_next_turn_begins_however_it_comes_in(
    text: str, kept: str, width: int
) -> None:
    pieces = [text[start : start + width] for start in range(0, len(text), width)]
    assert "".join(until(iter(pieces), "Human:")) == kept
    assert "".join(until(iter(pieces), None)) == text


def test_an_answer_streams_what_generate_writes(asked: Asked) -> None:
    turns = [Message("user", "Name a colour.")]
    streamed = list(said(asked, turns, GREEDY))
    ids = asked.tokenizer("\n\nHuman: Name a colour.\n\nAssistant:", return_tensors="pt").input_ids
    row = asked.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    whole = asked.tokenizer.decode(row[0, ids.shape[1] :], skip_special_tokens=True)
    assert "".join(streamed) == whole
    assert "".join(said(asked, turns, Manner(max_new_tokens=6, temperature=0, num_beams=3)))


def test_an_answer_ends_with_the_tokenizers_eos_also_where_the_models_configuration_has_another(
    asked: Asked,
) -> None:
    turns = [Message("user", "Name a colour.")]
    ids = asked.tokenizer("\n\nHuman: Name a colour.\n\nAssistant:", return_tensors="pt").input_ids
    row = asked.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    answer = row[0, ids.shape[1] :].tolist()
    asked.tokenizer.eos_token = asked.tokenizer.convert_ids_to_tokens(answer[3])
    first = answer.index(answer[3])
    assert first < 5  # else nothing was cut off
    # shown here, since a letter is no special token
    assert "".join(said(asked, turns, GREEDY)) == asked.tokenizer.decode(answer[: first + 1])


def test_no_token_comes_twice_where_that_is_asked_for(asked: Asked) -> None:
    turns = [Message("user", "Name a colour.")]
    ids = asked.tokenizer("\n\nHuman: Name a colour.\n\nAssistant:", return_tensors="pt").input_ids
    row = asked.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        no_repeat_ngram_size=1,
    )[0, ids.shape[1] :]
    assert len(set(row.tolist())) == len(row)
    whole = asked.tokenizer.decode(row, skip_special_tokens=True)
    assert "".join(said(asked, turns, Manner(40, temperature=0, no_repeat_ngram_size=1))) == whole
    assert "".join(said(asked, turns, Manner(40, temperature=0))) != whole


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(asked: Asked) -> None:
    turns = [Message("assistant" if n % 2 else "user", f"turn {n} " + "and so on " * 40) for n in range(21)]
    kept = fitting(asked, turns, GREEDY)
    assert kept == turns[len(turns) - len(kept) :]
    assert 1 < len(kept) < len(turns)
    assert kept[0].role == "user"
    assert fitting(asked, turns, Manner(max_new_tokens=6, raw=True)) == turns[-1:]
    with pytest.raises(UserError, match="exceed the model's context of 2048"):
        fitting(asked, [Message("user", "and so on " * 2000)], GREEDY)


def test_two_models_on_a_page_answer_beside_each_other_and_remember(asked: Asked) -> None:
    models = {"sft": asked, "rlhf": asked}
    states = [
        [list(history) for history in state]
        for state in page.exchange(models, [[], []], "Name a colour.", GREEDY)
    ]
    assert [len(history) for history in states[0]] == [2, 2]
    first, second = states[-1]
    assert first == second
    assert first[0] == {"role": "user", "content": "Name a colour."}
    assert first[1]["content"]
    *_, last = page.exchange(models, [first, []], "And another.", GREEDY)
    assert [len(history) for history in last] == [4, 2]
    *_, full = page.exchange(models, [[], []], "and so on " * 2000, GREEDY)
    assert re.match(r"\(--max_new_tokens: 6 after \d+ tokens exceed", full[0][1]["content"])
    parts: dict[str, Any] = {
        "role": "user",
        "content": [{"type": "text", "text": "Name "}, "it"],
        "metadata": None,
    }
    assert page.plain_turn(parts) == {"role": "user", "content": "Name it"}
