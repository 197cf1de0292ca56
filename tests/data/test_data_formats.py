import pytest

from rlhf_hw.data.example import Example, Message, from_row, to_row
from rlhf_hw.data.formats import FORMATS, MalformedRow, detect, format_named
from rlhf_hw.errors import UserError

USER, ANSWER, OTHER = Message("user", "Hi"), Message("assistant", "Hello."), Message("assistant", "Go away.")
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
OTHER_MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away."}]


def convert(row):
    return detect(list(row), row).convert(row)


# One row of each known set of columns, with what it must become.
CONVERSIONS = {
    "orca": (
        {"system": "Be kind. ", "question": "Why?", "chosen": "So.", "rejected": "No."},
        Example("Be kind. Why?", "So.", "No.", "orca"),
    ),
    "orca, older columns": (
        {"system": "", "question": "Why?", "chatgpt": "So.", "llama2-13b-chat": "No."},
        Example("Why?", "So.", "No.", "orca"),
    ),
    "hh_rlhf, several turns": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Hi\n\nAssistant: Yes?",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Hi\n\nAssistant: No!",
        },
        Example((USER, ANSWER, USER), "Yes?", "No!", "hh_rlhf"),
    ),
    "preference, text": (
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."},
        Example("Hi", "Hello.", "Go away.", "preference"),
    ),
    "preference, messages": (
        {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": OTHER_MESSAGES[1:]},
        Example((USER,), "Hello.", "Go away.", "preference"),
    ),
    "preference, whole conversations": (
        {"chosen": MESSAGES, "rejected": OTHER_MESSAGES},
        Example((USER,), "Hello.", "Go away.", "preference"),
    ),
    "preference, conversations that repeat the prompt": (
        {"prompt": "Hi", "chosen": MESSAGES, "rejected": OTHER_MESSAGES},
        Example((USER,), "Hello.", "Go away.", "preference"),
    ),
    "prompt and completion": (
        {"prompt": "Hi", "completion": " Hello."},
        Example("Hi", " Hello.", None, "preference"),
    ),
    "prompt alone": ({"prompt": "Hi"}, Example("Hi", None, None, "preference")),
    "chat": ({"messages": MESSAGES}, Example((USER,), "Hello.", None, "chat")),
    "chat, several answers": (
        {"messages": MESSAGES + MESSAGES},
        Example((USER, ANSWER, USER), "Hello.", None, "chat", learn_all_turns=True),
    ),
    "chat, ends with the user": ({"messages": MESSAGES[:1]}, Example((USER,), None, None, "chat")),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        Example((USER,), "Hello.", None, "chat"),
    ),
    "text": ({"text": "Once upon a time."}, Example("", "Once upon a time.", None, "text")),
}


@pytest.mark.parametrize(("row", "example"), CONVERSIONS.values(), ids=CONVERSIONS.keys())
def test_columns_are_recognized_and_become_the_canonical_example(row, example):
    assert convert(row) == example


@pytest.mark.parametrize("example", [pair[1] for pair in CONVERSIONS.values()], ids=CONVERSIONS.keys())
def test_an_example_survives_its_columns(example):
    assert from_row(to_row(example)) == example


def test_unicode_survives_the_columns():
    example = Example((Message("user", "Grüße, 世界 🌍\u2028"),), "é\u0301 \x00", None)
    assert from_row(to_row(example)) == example


def test_alpaca_prompts_are_the_published_ones_to_the_letter():
    assert convert({"instruction": "Add.", "input": "1, 2", "output": "3"}) == Example(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:",
        "3",
        None,
        "alpaca",
    )
    for no_input in ({"input": ""}, {"input": None}, {}):
        assert convert({"instruction": "Greet.", "output": "Hi.", **no_input}).prompt == (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nGreet.\n\n### Response:"
        )


def test_braces_in_an_instruction_are_text():
    assert "### Instruction:\nPrint {x}.\n" in convert({"instruction": "Print {x}.", "output": "ok"}).prompt


@pytest.mark.parametrize(
    ("preference", "chosen"),
    [(1, "one"), (2, "two"), ("1", "one"), ("2", "two")],
    ids=["1", "2", "'1'", "'2'"],
)
def test_alpaca_farm_preference_names_the_better_output(preference, chosen):
    row = {"instruction": "Say.", "input": "", "output_1": "one", "output_2": "two", "preference": preference}
    example = convert(row)
    assert (example.chosen, {example.chosen, example.rejected}) == (chosen, {"one", "two"})
    assert example.source == "alpaca_farm"


@pytest.mark.parametrize("preference", [0, 3, None, True, 1.5, "first", [1]])
def test_a_preference_that_is_not_1_or_2_is_not_guessed_at(preference):
    row = {"instruction": "Say.", "input": "", "output_1": "one", "output_2": "two", "preference": preference}
    with pytest.raises(MalformedRow, match="not 1 or 2"):
        convert(row)


def test_summary_prompt_holds_the_article_and_asks_for_a_summary():
    example = convert({"article": "Rain fell.", "highlights": "It rained.", "id": "1"})
    assert "Rain fell." in example.prompt
    assert example.prompt.endswith("Summary:\n")
    assert example.chosen == "It rained."


HH_ROW = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
TEXT_ROW = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
MALFORMED = {
    "null answer": ({**TEXT_ROW, "chosen": None}, "chosen is null"),
    "empty answer": ({**TEXT_ROW, "rejected": " \n"}, "rejected is empty"),
    "number for an answer": ({**TEXT_ROW, "chosen": 3}, "chosen is int, not text"),
    "null prompt": ({**TEXT_ROW, "prompt": None}, "prompt is null"),
    "hh, different prompts": (
        {**HH_ROW, "rejected": "\n\nHuman: Ho\n\nAssistant: No"},
        "chosen and rejected have different prompts",
    ),
    "hh, one more turn": (
        {**HH_ROW, "rejected": HH_ROW["rejected"] + "\n\nHuman: Hi\n\nAssistant: No"},
        "chosen and rejected have different prompts",
    ),
    "hh, last answer empty": (
        {**HH_ROW, "chosen": "\n\nHuman: Hi\n\nAssistant:"},
        "a turn in chosen is empty",
    ),
    "hh, ends with the user": ({**HH_ROW, "chosen": HH_ROW["chosen"] + "\n\nHuman: Hi"}, "does not end with"),
    "hh, no transcript": ({**HH_ROW, "chosen": "Yes"}, "does not begin with"),
    "hh, no prompt": ({"chosen": "\n\nAssistant: Yes", "rejected": "\n\nAssistant: No"}, "has no prompt"),
    "chat, unknown role": ({"messages": [{"role": "tool", "content": "3"}]}, "unknown role 'tool'"),
    "chat, content parts": (
        {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]},
        "has list for its content",
    ),
    "chat, empty turn": ({"messages": [{"role": "user", "content": ""}, MESSAGES[1]]}, "is empty"),
    "chat, null": ({"messages": None}, "messages is null or empty"),
    "chat, a string": ({"messages": "Hi"}, "not a list of messages"),
    "chat, an answer to nothing": ({"messages": MESSAGES[1:]}, "has no prompt"),
    "conversations, different prompts": (
        {"chosen": MESSAGES, "rejected": [{"role": "user", "content": "Ho"}, OTHER_MESSAGES[1]]},
        "chosen and rejected have different prompts",
    ),
    "conversation with another prompt": (
        {"prompt": "Ho", "chosen": MESSAGES, "rejected": OTHER_MESSAGES},
        "prompt and chosen disagree",
    ),
}


@pytest.mark.parametrize(("row", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_says_what_is_wrong_with_it(row, reason):
    with pytest.raises(MalformedRow, match=reason):
        convert(row)


def test_unknown_columns_are_named_beside_every_known_set():
    with pytest.raises(UserError) as raised:
        detect(["query", "reply"], {"query": "a", "reply": "b"})
    message = str(raised.value)
    assert "query, reply" in message
    assert all(known.name in message and known.example_columns in message for known in FORMATS)
    assert "\n" not in message


def test_an_unknown_format_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"--data_format: 'xml'.*orca, .*preference"):
        format_named("xml")
