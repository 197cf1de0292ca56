"""Formats of the user's own: a YAML file that says which columns are prompt, chosen and rejected."""

import pytest

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats import MalformedRow, format_named
from rlhf_hw.data.sources import DataSource, load_splits
from rlhf_hw.errors import UserError


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return format_named(str(tmp_path / "mine.yaml"))

    return read


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("prompt: q\nchosen: good\nrejected: bad", Example("Why?", "So.", "No.", "mine")),
        ("prompt: 'Q: {q}\n\n  A:'\nchosen: ' {good}'", Example("Q: Why?\nA:", " So.", None, "mine")),
        ("prompt: '{{{q}}} {inside.it}'", Example("{Why?} deep", None, None, "mine")),
        ("prompt: inside.it\nchosen: dotted.name", Example("deep", "as it is", None, "mine")),
        ("prompt: '{问题}'", Example("为什么", None, None, "mine")),
    ],
)
def test_columns_and_texts_around_them_become_an_example(read, text, example):
    row = {"q": "Why?", "good": "So.", "bad": "No.", "inside": {"it": "deep"}, "dotted.name": "as it is"}
    assert read(text).convert({**row, "问题": "为什么"}) == example


def test_a_prompt_written_as_a_dialogue_is_messages_for_a_chat_template(read):
    known = read("prompt: ' Human: {q} Assistant:'\nchosen: ' {good}'")
    assert known.chat_prompt({"q": "Why?", "good": "So."}) == (Message("user", "Why?"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"good": "So."}, "q is null or missing"),
        ({"q": "Why?", "good": None}, "good is null or missing"),
        ({"q": 3, "good": "So."}, "q is int, not text"),
    ],
)
def test_a_row_without_the_columns_is_malformed(read, row, reason):
    with pytest.raises(MalformedRow, match=reason):
        read("prompt: q\nchosen: good").convert(row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chosen: q", "must say what prompt is"),
        ("prompt: q\nrejected: bad", "may say chosen, or chosen and rejected"),
        ("prompt: q\nanswer: a", "unknown key 'answer'; known are prompt, chosen, rejected"),
        ("prompt: {q}", "prompt is {'q': None}, not a column or a text; put it in quotes"),
        ("prompt: 'a {q'", "a brace that is text is doubled"),
        ("prompt: 'a {}'", "names no column"),
        ("prompt: [", "is not YAML"),
        ("- prompt", "must say what prompt is"),
    ],
)
def test_a_file_that_describes_no_format_is_refused_in_one_line(read, text, message):
    with pytest.raises(UserError, match=message) as raised:
        read(text)
    assert str(raised.value).startswith("--data_format: ")
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"--data_format: cannot read nowhere\.yaml: No such file"):
        format_named("nowhere.yaml")


def test_an_edited_description_is_read_anew(write_jsonl, tmp_path):
    data, description = write_jsonl([{"q": "Why?"}]), tmp_path / "mine.yaml"
    found = []
    for text in ("prompt: q", "prompt: 'Q {q}'"):
        description.write_text(text)
        source = DataSource(data, data_format=str(description), cache_dir=str(tmp_path / "cache"))
        found.append(load_splits(source, "ppo").train[0]["prompt"])
    assert found == ["Why?", "Q Why?"]
