import copy

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlhf_hw.data.encode import special_prefix
from rlhf_hw.data.example import CANONICAL_FEATURES, Example, Message, to_row
from rlhf_hw.data.fingerprint import fingerprint_of_tokenizer
from rlhf_hw.data.sources import DataSource, load_splits
from rlhf_hw.data.tokenize import for_prompts, for_reward, for_sft
from rlhf_hw.errors import UserError

ASK, SAID, AGAIN = Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Hi again")
KINDS = ["tiny_tokenizer", "bos_tokenizer", "chatml_tokenizer", "instruct_tokenizer"]


def canonical(*examples):
    return Dataset.from_list([to_row(example) for example in examples], features=CANONICAL_FEATURES)


def sft_row(example, tokenizer, max_length=256, **options):
    return for_sft(canonical(example), tokenizer, max_length=max_length, **options).dataset[0]


def targets(row, tokenizer):
    """The text of each run of targets in a row."""
    runs, before = [], 0
    for token, is_target in zip(row["input_ids"], row["loss_mask"], strict=True):
        if is_target and not before:
            runs.append([])
        if is_target:
            runs[-1].append(token)
        before = is_target
    return [tokenizer.decode(run) for run in runs]


# --- SFT -------------------------------------------------------------------------------------------------------


def test_the_answer_and_its_eos_are_learnt_and_the_prompt_is_not(tiny_tokenizer):
    row = sft_row(Example("Q: é世🌍?", " A: ñ."), tiny_tokenizer)
    assert tiny_tokenizer.decode(row["input_ids"]) == "Q: é世🌍? A: ñ.<|endoftext|>"
    assert targets(row, tiny_tokenizer) == [" A: ñ.<|endoftext|>"]


def test_eos_is_learnt_although_it_is_the_padding_token_too(tiny_tokenizer):
    assert tiny_tokenizer.pad_token_id == tiny_tokenizer.eos_token_id
    row = sft_row(Example("Q", "A"), tiny_tokenizer)
    assert (row["input_ids"][-1], row["loss_mask"][-1]) == (tiny_tokenizer.eos_token_id, 1)


def test_eos_is_not_written_twice_where_text_or_template_end_with_it(tiny_tokenizer, instruct_tokenizer):
    for row, eos in (
        (sft_row(Example("Q", "A<|endoftext|>"), tiny_tokenizer), tiny_tokenizer.eos_token_id),
        (sft_row(Example((ASK,), "A"), instruct_tokenizer), instruct_tokenizer.eos_token_id),
    ):
        assert row["input_ids"].count(eos) == 1
        assert row["input_ids"][-1] == eos


def test_a_templates_own_end_of_turn_is_learnt_and_then_eos(chatml_tokenizer):
    row = sft_row(Example((ASK,), "Hello."), chatml_tokenizer)
    assert targets(row, chatml_tokenizer) == ["Hello.<|im_end|><|endoftext|>"]


def test_bos_stands_once_at_the_front_whoever_writes_it(bos_tokenizer, instruct_tokenizer):
    for tokenizer, prompt in ((bos_tokenizer, "Q"), (bos_tokenizer, (ASK,)), (instruct_tokenizer, (ASK,))):
        ids = sft_row(Example(prompt, "A"), tokenizer)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizers_own_end_is_not_put_between_prompt_and_answer(bos_tokenizer):
    ids = sft_row(Example("Q", "A"), bos_tokenizer)["input_ids"]
    assert special_prefix(bos_tokenizer) == [bos_tokenizer.bos_token_id]
    assert [index for index, token in enumerate(ids) if token == bos_tokenizer.eos_token_id] == [len(ids) - 1]


def test_a_tokenizer_that_begins_with_a_space_gets_no_second_one(metaspace_tokenizer):
    row = sft_row(Example((ASK,), "Paris"), metaspace_tokenizer)
    joined = metaspace_tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert "▁▁" not in "".join(joined)
    assert "".join(joined).endswith("Assistant:▁Paris</s>")


def without_the_letter_a(*, space: str = "", letters: str = "bcd") -> PreTrainedTokenizerFast:
    """A tokenizer of single letters, without "a" and without a token for what it does not know; it writes <s> itself."""
    tokens = ["<s>", "</s>", *([space] if space else []), *letters]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    if space:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space)
        tokenizer.decoder = decoders.Metaspace(replacement=space)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("space", ["", "▁"])
def test_a_tokenizer_without_the_letter_a_is_told_by_the_letters_it_has(space):
    tokenizer = without_the_letter_a(space=space)
    assert tokenizer("a", add_special_tokens=False).input_ids in ([], [2])
    assert special_prefix(tokenizer) == [0]
    ids = sft_row(Example("bc", "d"), tokenizer)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<s>",
        *([space] if space else []),
        "b",
        "c",
        *([space] if space else []),
        "d",
        "</s>",
    ]


def test_a_tokenizer_of_special_tokens_alone_is_refused():
    with pytest.raises(UserError, match="--tokenizer_name: the tokenizer has no token for any text"):
        sft_row(Example("bc", "d"), without_the_letter_a(letters=""))


def test_an_overlong_row_is_cut_has_no_eos_and_is_counted(tiny_tokenizer):
    whole = sft_row(Example("Q: ", "a long answer"), tiny_tokenizer)["input_ids"]
    dataset, report = for_sft(
        canonical(Example("Q: ", "a long answer"), Example("Q: ", "a")),
        tiny_tokenizer,
        max_length=len(whole) - 1,
    )
    assert dataset[0]["input_ids"] == whole[:-1]
    assert tiny_tokenizer.eos_token_id not in dataset[0]["input_ids"]
    assert dataset[1]["input_ids"][-1] == tiny_tokenizer.eos_token_id
    assert (report.truncated, report.kept) == (1, 2)
    # One token more, and nothing is cut: the limit counts the EOS.
    dataset, report = for_sft(
        canonical(Example("Q: ", "a long answer")), tiny_tokenizer, max_length=len(whole)
    )
    assert (dataset[0]["input_ids"], report.truncated) == (whole, 0)


def test_an_overlong_row_may_keep_its_end_and_its_bos(bos_tokenizer):
    examples = canonical(Example("Q: " + "x" * 40, "the answer"), Example("Q: ", "a" * 40))
    whole = for_sft(examples, bos_tokenizer, max_length=200).dataset
    length = len(whole[0]["input_ids"]) - 5
    dataset, report = for_sft(examples, bos_tokenizer, max_length=length, truncate="left")
    assert report.truncated == 1 + (len(whole[1]["input_ids"]) > length)
    bos = bos_tokenizer.bos_token_id
    assert dataset[0]["input_ids"] == [bos, *whole[0]["input_ids"][6:]]
    assert dataset[0]["loss_mask"] == [0, *whole[0]["loss_mask"][6:]]  # the answer is whole, and its EOS
    end = for_sft(examples, bos_tokenizer, max_length=4, truncate="left").dataset[1]
    assert end["input_ids"] == [bos, *whole[1]["input_ids"][-3:]]
    assert end["loss_mask"] == [0, 0, 1, 1]  # nothing tells the first token that is kept


def test_a_prompt_that_fills_the_row_leaves_nothing_to_learn_and_is_dropped(tiny_tokenizer):
    examples = canonical(Example("x" * 100, "a"), Example("Q", "a"))
    dataset, report = for_sft(examples, tiny_tokenizer, max_length=20)
    assert len(dataset) == 1
    assert report.dropped == {"nothing to learn: the prompt fills max_length": 1}
    with pytest.raises(UserError, match=r"no row is left .* the prompt fills max_length: 1 rows"):
        for_sft(canonical(Example("x" * 100, "a")), tiny_tokenizer, max_length=20)


def test_train_on_inputs_learns_all_but_the_first_token(tiny_tokenizer):
    row = sft_row(Example("Question", "Answer"), tiny_tokenizer, train_on_inputs=True)
    assert row["loss_mask"] == [0] + [1] * (len(row["input_ids"]) - 1)


def test_text_without_a_prompt_is_all_target_but_the_first_token(tiny_tokenizer, bos_tokenizer):
    row = sft_row(Example("", "Once upon"), tiny_tokenizer)
    assert row["loss_mask"] == [0] + [1] * (len(row["input_ids"]) - 1)
    row = sft_row(Example("", "Once upon"), bos_tokenizer)
    assert targets(row, bos_tokenizer) == ["Once upon</s>"]


@pytest.mark.parametrize(
    ("kind", "learnt"),
    [
        ("tiny_tokenizer", [" Hello.", " Yes?<|endoftext|>"]),
        ("bos_tokenizer", [" Hello.", " Yes?</s>"]),
        ("chatml_tokenizer", ["Hello.<|im_end|>", "Yes?<|im_end|><|endoftext|>"]),
        ("instruct_tokenizer", [" Hello. </s>", " Yes? </s>"]),
    ],
)
def test_every_turn_of_the_assistant_is_learnt_and_no_other_token(kind, learnt, request):
    tokenizer = request.getfixturevalue(kind)
    prompt = (ASK, SAID, AGAIN)
    row = sft_row(Example(prompt, "Yes?", learn_all_turns=True), tokenizer)
    assert targets(row, tokenizer) == learnt
    last_only = sft_row(Example(prompt, "Yes?"), tokenizer)
    assert last_only["input_ids"] == row["input_ids"]
    assert targets(last_only, tokenizer) == learnt[1:]


def test_a_conversation_the_template_refuses_is_dropped_with_its_reason(instruct_tokenizer):
    dataset, report = for_sft(
        canonical(Example((ASK, ASK), "A"), Example((ASK,), "A")), instruct_tokenizer, max_length=99
    )
    assert len(dataset) == 1
    assert report.dropped == {"the chat template refuses it: roles must alternate": 1}


def test_the_report_counts_lengths_and_targets(tiny_tokenizer):
    dataset, report = for_sft(
        canonical(*[Example("Q", "A" * n) for n in (1, 2, 30)]), tiny_tokenizer, max_length=64
    )
    lengths = sorted(map(len, dataset["input_ids"]))
    assert (report.lengths.minimum, report.lengths.median, report.lengths.maximum) == tuple(lengths)
    assert report.target_tokens == sum(map(sum, dataset["loss_mask"]))


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        sft_row(Example("Q", "A"), tokenizer)


# --- reward model and PPO --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["Question: ", (ASK, SAID, AGAIN)], ids=["text", "chat"])
def test_sft_reward_and_ppo_see_the_same_ids(kind, prompt, request):
    tokenizer = request.getfixturevalue(kind)
    rows = canonical(Example(prompt, "Yes.", "No."))
    asked = for_prompts(rows, tokenizer, max_prompt_length=256).dataset[0]["input_ids"]
    learnt = sft_row(Example(prompt, "Yes."), tokenizer)
    pair = for_reward(rows, tokenizer, max_length=256).dataset[0]
    assert learnt["input_ids"][: len(asked)] == asked
    assert learnt["loss_mask"] == [0] * len(asked) + [1] * (len(learnt["input_ids"]) - len(asked))
    assert pair["chosen_input_ids"] == learnt["input_ids"]
    assert pair["rejected_input_ids"][: len(asked)] == asked
    assert pair["rejected_input_ids"][-1] == tokenizer.eos_token_id


def test_a_pair_is_dropped_if_either_side_is_too_long(tiny_tokenizer):
    examples = [Example("Q", "a", "b"), Example("Q", "x" * 50, "b"), Example("Q", "a", "x" * 50)]
    dataset, report = for_reward(canonical(*examples), tiny_tokenizer, max_length=20)
    assert len(dataset) == 1
    assert report.dropped == {"a side is longer than max_length": 2}


def test_overlong_prompts_are_dropped_or_keep_their_end_and_bos(bos_tokenizer):
    rows = canonical(Example("first words and the last ones", "A", source="s"), Example("Q", None))
    dataset, report = for_prompts(rows, bos_tokenizer, max_prompt_length=8)
    assert (len(dataset), report.dropped) == (1, {"the prompt is longer than max_prompt_length": 1})
    dataset, report = for_prompts(rows, bos_tokenizer, max_prompt_length=8, truncate="left")
    row = dataset[0]
    assert len(row["input_ids"]) == 8
    assert row["input_ids"] == [bos_tokenizer.bos_token_id, *row["input_ids"][1:]]
    assert "first words and the last ones".endswith(row["prompt"])
    assert bos_tokenizer.decode(row["input_ids"][1:]) == row["prompt"]
    assert (row["chosen"], row["source"], report.truncated) == ("A", "s", 1)


def test_a_prompt_without_any_token_is_dropped(tiny_tokenizer):
    dataset, report = for_prompts(
        canonical(Example("", None), Example("Q", None)), tiny_tokenizer, max_prompt_length=8
    )
    assert (len(dataset), report.dropped) == (1, {"the prompt is empty": 1})


# --- the cache -------------------------------------------------------------------------------------------------


@pytest.fixture
def saved_rows(write_jsonl, tmp_path):
    def load(answer="Yes"):
        path = write_jsonl(
            [{"prompt": f"Question {n}", "chosen": f"{answer} {n}", "rejected": "No"} for n in range(8)]
        )
        return load_splits(DataSource(train_file=path, cache_dir=str(tmp_path / "cache")), "sft").train

    return load


def test_a_second_run_tokenizes_nothing_and_gives_the_same(saved_rows, tiny_tokenizer, monkeypatch):
    first = for_sft(saved_rows(), tiny_tokenizer, max_length=64)
    tiny_tokenizer(
        ["longer", "text"], padding="max_length", truncation=True, max_length=9
    )  # leaves state behind

    def tripwire(*_, **__):
        raise AssertionError("a row was tokenized again")

    monkeypatch.setattr("rlhf_hw.data.tokenize.encode", tripwire)
    second = for_sft(saved_rows(), copy.deepcopy(tiny_tokenizer), max_length=64)
    assert list(second.dataset) == list(first.dataset)
    assert second.report == first.report
    assert second.dataset.cache_files == first.dataset.cache_files


def test_changed_data_tokenizer_or_options_are_tokenized_anew(saved_rows, tiny_tokenizer, chatml_tokenizer):
    rows = saved_rows()
    runs = [
        for_sft(rows, tiny_tokenizer, max_length=64),
        for_sft(rows, tiny_tokenizer, max_length=63),
        for_sft(rows, tiny_tokenizer, max_length=64, truncate="left"),
        for_sft(rows, tiny_tokenizer, max_length=64, train_on_inputs=True),
        for_sft(rows, chatml_tokenizer, max_length=64),
        for_sft(saved_rows(answer="Yet"), tiny_tokenizer, max_length=64),
    ]
    assert len({run.dataset._fingerprint for run in runs}) == len(runs)
    assert "Yet 0" in tiny_tokenizer.decode(runs[-1].dataset[0]["input_ids"])


def test_processes_do_not_change_the_result(saved_rows, tiny_tokenizer):
    rows = saved_rows()
    two = for_sft(rows, tiny_tokenizer, max_length=64, num_proc=2)
    one = for_sft(Dataset.from_list(list(rows), features=rows.features), tiny_tokenizer, max_length=64)
    assert list(two.dataset) == list(one.dataset)
    assert two.report == one.report


@pytest.mark.parametrize("change", ["template", "token", "eos", "bos"])
def test_whatever_changes_ids_changes_the_tokenizers_fingerprint(change, tiny_tokenizer, bos_tokenizer):
    changed = copy.deepcopy(tiny_tokenizer)
    assert fingerprint_of_tokenizer(changed) == fingerprint_of_tokenizer(tiny_tokenizer)
    if change == "template":
        changed.chat_template = "{{ messages }}"
    elif change == "token":
        changed.add_tokens(["Paris"])
    elif change == "eos":
        changed.eos_token = "."
    else:
        changed.backend_tokenizer.post_processor = bos_tokenizer.backend_tokenizer.post_processor
    assert fingerprint_of_tokenizer(changed) != fingerprint_of_tokenizer(tiny_tokenizer)
