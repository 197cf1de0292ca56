"""Every data set that the documents name, on rows with its own columns and types."""

import pytest

from rlhf_hw.data.example import Example, Message
from rlhf_hw.data.formats import MalformedRow, detect
from rlhf_hw.data.formats.alpaca import PROMPT_WITHOUT_INPUT
from rlhf_hw.errors import UserError

HH_PROMPT = "\n\nHuman: What is a whale?\n\nAssistant: A mammal.\n\nHuman: How large?\n\nAssistant:"
HH_MESSAGES = (
    Message("user", "What is a whale?"),
    Message("assistant", "A mammal."),
    Message("user", "How large?"),
)
ASKED = " Human: How? Assistant:"
MKQA = {
    "example_id": "563260143484355911",
    "queries": {"en": "how?", "zh_cn": "怎么", "ja": "どう"},
    "query": "how?",
    "answers": {
        "en": [{"type": "number", "entity": "", "text": "3", "aliases": []}],
        "zh_cn": [{"type": "number_with_unit", "entity": "", "text": "3 年", "aliases": ["三年"]}],
        "ja": [{"type": "number_with_unit", "entity": "", "text": "3 年間", "aliases": []}],
    },
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "5w5zy9", "full_text": "How?"},
    "quotes_0": {"title": ["T"], "extract": ["E"]},
    "answer_0": "So [1]. It goes (slowly) on [2, 3].",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": 0.5,
    "quotes_1": {"title": [], "extract": []},
    "answer_1": "Not so.",
    "tokens_1": {"prefix": [1], "completion": [2]},
    "score_1": -0.5,
}
SHP = {
    "post_id": "qt3nxl",
    "domain": "askculinary_train",
    "upvote_ratio": 0.98,
    "history": "How?",
    "human_ref_A": "By A.",
    "human_ref_B": "By B.",
    "labels": 1,
    "seconds_difference": 20.0,
    "score_A": 9,
    "score_B": 2,
    "score_ratio": 4.5,
}
PASSAGE = {"docid": "3462#0", "title": "T", "text": "A passage."}
SCORED = [
    {"response": "Worst.", "source": "opt", "score": 2.0},
    {"response": "Best.", "source": "gpt4", "score": 9.0},
    {"response": "Middling.", "source": "gpt3", "score": 7.0},
]

# (name, row, the example, its chat messages or None where the prompt is one already)
SETS = {
    "Dahoas/rm-static": (
        {"prompt": HH_PROMPT, "response": " 30 m.", "chosen": " 30 m.", "rejected": " Huge."},
        Example(HH_PROMPT, " 30 m.", " Huge.", "preference"),
        HH_MESSAGES,
    ),
    "Dahoas/full-hh-rlhf": (
        {"prompt": HH_PROMPT, "response": " 30 m.", "chosen": " 30 m.", "rejected": " Huge."},
        Example(HH_PROMPT, " 30 m.", " Huge.", "preference"),
        HH_MESSAGES,
    ),
    "zwh9029/rm-static-m2m100-zh-jianti": (
        {"prompt": "\n\nHuman: 鲸鱼?\n\nAssistant:", "response": " 大", "chosen": " 大", "rejected": " 小"},
        Example("\n\nHuman: 鲸鱼?\n\nAssistant:", " 大", " 小", "preference"),
        (Message("user", "鲸鱼?"),),
    ),
    "Dahoas/synthetic-instruct-gptj-pairwise": (
        {"prompt": "How?", "chosen": "So.", "rejected": "No."},
        Example(ASKED, " So.", " No.", "synthetic_instruct"),
        (Message("user", "How?"),),
    ),
    "yitingxie/rlhf-reward-datasets": (
        {"prompt": "\n\nHuman: How?\n\n", "chosen": "Assistant: So.", "rejected": "Assistant: No."},
        Example("\n\nHuman: How?\n\nAssistant:", " So.", " No.", "rlhf_reward"),
        (Message("user", "How?"),),
    ),
    "local/jsonfile": (
        {"prompt": "Human: How? Assistant:", "chosen": "So.", "rejected": "No."},
        Example(ASKED, " So.", " No.", "local_jsonfile"),
        (Message("user", "How?"),),
    ),
    "stanfordnlp/SHP": (
        SHP,
        Example(ASKED, " By A.", " By B.", "shp"),
        (Message("user", "How?"),),
    ),
    "openai/webgpt_comparisons": (
        WEBGPT,
        Example(ASKED, " So. It goes (slowly) on.", " Not so.", "webgpt"),
        (Message("user", "How?"),),
    ),
    "Anthropic/hh-rlhf": (
        {"chosen": HH_PROMPT + " 30 m.", "rejected": HH_PROMPT + " Huge."},
        Example(HH_MESSAGES, "30 m.", "Huge.", "hh_rlhf"),
        None,
    ),
    "wangrui6/Zhihu-KOL": (
        {"INSTRUCTION": "How?", "RESPONSE": "So.", "SOURCE": "Zhihu", "METADATA": '{"question_id": 1.0}'},
        Example(ASKED, " So.", None, "zhihu"),
        (Message("user", "How?"),),
    ),
    "Hello-SimpleAI/HC3-Chinese": (
        {"id": "0", "question": "How?", "human_answers": ["So.", "Or so."], "chatgpt_answers": ["Well."]},
        Example(ASKED, " So.", None, "hc3"),
        (Message("user", "How?"),),
    ),
    "mkqa-Chinese": (
        MKQA,
        Example(" Human: 怎么 Assistant:", " 3 年", None, "mkqa_chinese"),
        (Message("user", "怎么"),),
    ),
    "mkqa-Japanese": (
        MKQA,
        Example(" Human: どう Assistant:", " 3 年間", None, "mkqa_japanese"),
        (Message("user", "どう"),),
    ),
    "Cohere/miracl-zh-queries-22-12": (
        {
            "query_id": "1",
            "query": "How?",
            "positive_passages": [PASSAGE, {**PASSAGE, "text": "Another."}],
            "negative_passages": [{**PASSAGE, "text": "Beside the point."}],
        },
        Example(ASKED, " A passage.", " Beside the point.", "miracl"),
        (Message("user", "How?"),),
    ),
    "Cohere/miracl-ja-queries-22-12": (
        {"query_id": "1", "query": "How?", "positive_passages": [PASSAGE], "negative_passages": []},
        Example(ASKED, " A passage.", None, "miracl"),
        (Message("user", "How?"),),
    ),
    "pvduy/sharegpt_alpaca_oa_vicuna_format": (
        {"prompt": "USER: A USER: is what? ASSISTANT:", "label": "A person.</s>"},
        Example("Human: A Human: is what? Assistant:", " A person.", None, "vicuna"),
        None,
    ),
    "GPT-4-LLM alpaca_gpt4_data.json": (
        {"instruction": "Count.", "input": "", "output": "1, 2."},
        Example(PROMPT_WITHOUT_INPUT.format(instruction="Count."), "1, 2.", None, "alpaca"),
        (Message("user", "Count."),),
    ),
    "GPT-4-LLM alpaca_gpt4_data_zh.json": (
        {"instruction": "数到二。", "input": "", "output": "一、二。"},
        Example(PROMPT_WITHOUT_INPUT.format(instruction="数到二。"), "一、二。", None, "alpaca"),
        (Message("user", "数到二。"),),
    ),
    "GPT-4-LLM comparison_data.json": (
        {"user_input": "Count.", "completion_a": "1, 2.", "completion_b": "No."},
        Example(PROMPT_WITHOUT_INPUT.format(instruction="Count."), "1, 2.", "No.", "gpt4_comparison"),
        (Message("user", "Count."),),
    ),
    "GPT-4-LLM comparison_data_v2.json": (
        {"user_input": "Count.", "responses_and_scores": SCORED},
        Example(PROMPT_WITHOUT_INPUT.format(instruction="Count."), "Best.", "Worst.", "gpt4_comparison"),
        (Message("user", "Count."),),
    ),
    "MultiTurnAlpaca": (
        {"instruction": "Human: Hi Assistant: Hello. Human: How? Assistant: ", "input": "", "output": "So."},
        Example("Human: Hi Assistant: Hello. Human: How? Assistant:", " So.", None, "multi_turn_alpaca"),
        (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "How?")),
    ),
    "tatsu-lab/alpaca_farm instructions": (
        {"instruction": "Count.", "input": "", "output": "1, 2.", "sample_mode": "unlabeled"},
        Example(PROMPT_WITHOUT_INPUT.format(instruction="Count."), "1, 2.", None, "alpaca"),
        (Message("user", "Count."),),
    ),
    "tatsu-lab/alpaca_farm human preference": (
        {
            "instruction": "Count.",
            "input": "",
            "output_1": "No.",
            "output_2": "1, 2.",
            "preference": 2,
            "raw_preference": 4,
        },
        Example(PROMPT_WITHOUT_INPUT.format(instruction="Count."), "1, 2.", "No.", "alpaca_farm"),
        (Message("user", "Count."),),
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_the_set_is_recognized_and_written_as_documented(name):
    row, example, _ = SETS[name]
    assert detect(list(row), row, set_name=name).convert(row) == example


@pytest.mark.parametrize("name", [name for name in SETS if SETS[name][2]])
def test_its_prompt_is_messages_for_a_chat_template(name):
    row, _, messages = SETS[name]
    assert detect(list(row), row, set_name=name).chat_prompt(row) == messages


@pytest.mark.parametrize(
    "path",
    [
        "/data/Dahoas/Synthetic-Instruct-GPTJ-pairwise",
        "sets/synthetic-instruct-gptj-pairwise.jsonl.gz",
        "mkqa-chinese/",
    ],
)
def test_a_copy_on_disk_is_known_by_its_path(path):
    row = MKQA if "mkqa" in path else SETS["Dahoas/synthetic-instruct-gptj-pairwise"][0]
    expected = "mkqa_chinese" if "mkqa" in path else "synthetic_instruct"
    assert detect(list(row), row, set_name=path).name == expected


@pytest.mark.parametrize("path", ["my-synthetic-instruct-gptj-pairwise", "data.jsonl", ""])
def test_a_name_that_only_contains_a_known_one_is_another_set(path):
    row = SETS["Dahoas/synthetic-instruct-gptj-pairwise"][0]
    assert detect(list(row), row, set_name=path).name == "preference"


def test_columns_that_only_a_name_tells_apart_ask_for_the_format():
    with pytest.raises(
        UserError, match=r"those of mkqa-Chinese or mkqa-Japanese.*mkqa_chinese or mkqa_japanese"
    ):
        detect(list(MKQA), MKQA, set_name="mkqa.jsonl")


def test_kto_rows_are_no_vicuna_conversations():
    row = {"prompt": "Hi", "completion": "Hello", "label": True}
    assert detect(list(row), row).name == "preference"


INCOMPLETE = {
    "webgpt, equal scores": ("openai/webgpt_comparisons", {"score_0": 0.0, "score_1": 0.0}, True),
    "webgpt, one answer": ("openai/webgpt_comparisons", {"answer_1": " "}, True),
    "mkqa, no short answer": (
        "mkqa-Chinese",
        {"answers": {"zh_cn": [{"type": "unanswerable", "entity": "", "text": None, "aliases": []}]}},
        False,
    ),
    "zhihu, no response": ("wangrui6/Zhihu-KOL", {"RESPONSE": None}, False),
    "hc3, nobody answered": ("Hello-SimpleAI/HC3-Chinese", {"human_answers": []}, False),
    "comparison, one score": (
        "GPT-4-LLM comparison_data_v2.json",
        {"responses_and_scores": [SCORED[0], {**SCORED[1], "score": 2.0}]},
        True,
    ),
}


@pytest.mark.parametrize(("name", "change", "has_answer"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_rows_that_the_set_leaves_open_are_no_pairs_and_no_faults(name, change, has_answer):
    row = {**SETS[name][0], **change}
    example = detect(list(row), row, set_name=name).convert(row)
    assert example.rejected is None
    assert (example.chosen is not None) == has_answer


FAULTS = {
    "shp, label": ("stanfordnlp/SHP", {"labels": 2}, "labels is 2, not 0 or 1"),
    "shp, null history": ("stanfordnlp/SHP", {"history": None}, "history is null"),
    "webgpt, score": ("openai/webgpt_comparisons", {"score_0": None}, "score_0 is None, not a number"),
    "webgpt, question": ("openai/webgpt_comparisons", {"question": "How?"}, "question is str, not an object"),
    "mkqa, language": ("mkqa-Japanese", {"queries": {"en": "how?"}}, "ja is null or missing"),
    "hc3, answers": (
        "Hello-SimpleAI/HC3-Chinese",
        {"human_answers": "So."},
        "human_answers is str, not a list",
    ),
    "miracl, passage": (
        "Cohere/miracl-zh-queries-22-12",
        {"positive_passages": ["A passage."]},
        "an item of positive_passages is str, not an object",
    ),
    "comparison, better answer": (
        "GPT-4-LLM comparison_data.json",
        {"completion_a": None},
        "completion_a is null or missing",
    ),
    "comparison, instruction": ("GPT-4-LLM comparison_data_v2.json", {"user_input": 3}, "user_input is int"),
    "comparison, answers": (
        "GPT-4-LLM comparison_data_v2.json",
        {"responses_and_scores": {"a": 9}},
        "responses_and_scores is dict, not a list",
    ),
    "comparison, answer": (
        "GPT-4-LLM comparison_data_v2.json",
        {"responses_and_scores": ["a"]},
        "an item of responses_and_scores is str, not an object",
    ),
    "comparison, no number": (
        "GPT-4-LLM comparison_data_v2.json",
        {"responses_and_scores": [{"response": "a", "score": float("nan")}]},
        "a score is nan, not a number",
    ),
    "comparison, score": (
        "GPT-4-LLM comparison_data_v2.json",
        {"responses_and_scores": [{"response": "a", "score": "9"}]},
        "a score is '9', not a number",
    ),
}


@pytest.mark.parametrize(("name", "change", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_row_that_does_not_fit_says_why(name, change, reason):
    row = {**SETS[name][0], **change}
    known = detect(list(SETS[name][0]), SETS[name][0], set_name=name)
    with pytest.raises(MalformedRow, match=reason):
        known.convert(row)


# --- Open-Assistant --------------------------------------------------------------------------------------------


def message(identity, parent, text, role="assistant", **more):
    defaults = {"deleted": False, "review_result": True, "rank": None, "lang": "en", "message_tree_id": "1"}
    return {"message_id": identity, "parent_id": parent, "text": text, "role": role, **defaults, **more}


FLAT = [
    message("1", None, "Hi", "prompter"),
    message("2", "1", "Hello.", rank=1),
    message("3", "1", "Welcome!", rank=0),
    message("4", "1", "Spam", rank=2, deleted=True),
    message("5", "2", "How?", "prompter"),
    message("6", "5", "So."),
    message("7", "4", "Why spam?", "prompter"),
    message("8", "3", "Thanks.", "prompter"),
]
HI, HOW, THANKS = Message("user", "Hi"), Message("user", "How?"), Message("user", "Thanks.")
THREADS = [
    Example((HI,), "Welcome!", "Hello.", "open_assistant"),
    Example((HI, Message("assistant", "Hello."), HOW), "So.", None, "open_assistant"),
    Example((HI, Message("assistant", "Welcome!"), THANKS), None, None, "open_assistant"),
]


def nested(identity):
    (found,) = [row for row in FLAT if row["message_id"] == identity]
    replies = [nested(row["message_id"]) for row in FLAT if row["parent_id"] == identity]
    return {key: value for key, value in found.items() if key != "parent_id"} | {"replies": replies}


@pytest.mark.parametrize("shape", ["messages", "trees"])
def test_open_assistant_threads_end_in_the_best_and_the_worst_ranked_reply(shape):
    rows = FLAT
    if shape == "trees":
        rows = [{"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": nested("1")}]
    known = detect(list(rows[0]), rows[0])
    assert known.name == "open_assistant"
    assert [known.convert(row) for row in known.gather(iter(rows))] == THREADS


def test_a_message_without_identity_is_a_malformed_row_and_the_others_are_kept():
    known = detect(list(FLAT[0]), FLAT[0])
    first, *others = known.gather(iter([{"text": "?"}, *FLAT]))
    with pytest.raises(MalformedRow, match="no message with a message_id"):
        known.convert(first)
    assert len(others) == len(THREADS)


def test_a_pair_with_a_label_beside_it_is_a_pair():
    row = {"prompt": "How?", "chosen": "So.", "rejected": "No.", "label": "helpful"}
    assert detect(list(row), row).name == "preference"


def test_an_input_beside_a_dialogue_is_a_fault_and_is_not_left_out_unseen():
    row = {"instruction": "Human: hi Assistant:", "input": "", "output": "Hello."}
    found = detect(list(row), row)
    assert found.name == "multi_turn_alpaca"
    with pytest.raises(MalformedRow, match="a dialogue has no input"):
        found.convert({"instruction": "Add up.", "input": "1 and 2", "output": "3"})
