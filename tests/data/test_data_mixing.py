"""Several sets, named splits, and the shares of the three stages."""

import json
from itertools import chain
from pathlib import Path

import pytest

from rlhf_hw.data.sources import DataSource, load_splits
from rlhf_hw.errors import UserError

STAGES = ("sft", "reward", "ppo")
DATA_SPLIT = (2.0, 4.0, 4.0)


def pairs(name, count, first=0):
    return [
        {"prompt": f"{name} {number}?", "chosen": f"{name} yes {number}", "rejected": f"{name} no {number}"}
        for number in range(first, first + count)
    ]


def write(directory: Path, **splits) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (directory / f"{split}.json").write_text(json.dumps(rows, ensure_ascii=False))
    return str(directory)


def prompts(dataset):
    return [] if dataset is None else list(dataset["prompt"])


@pytest.fixture
def load(tmp_path):
    def load(purpose="reward", **options):
        return load_splits(DataSource(cache_dir=str(tmp_path / "cache"), **options), purpose)

    return load


# --- several sets ----------------------------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path):
    a = write(tmp_path / "a", train=pairs("a", 30), test=pairs("a", 4, first=100))
    b = write(tmp_path / "b", train=pairs("b", 10))
    return [a, b]


def test_several_sets_are_mixed_by_seed_and_none_is_lost(load, sets):
    one, again, other = (load(dataset_name=sets, dataset_seed=seed) for seed in (1, 1, 2))
    expected = [row["prompt"] for row in pairs("a", 30) + pairs("b", 10)]
    assert prompts(one.train) == prompts(again.train) != prompts(other.train)
    assert one.train._fingerprint == again.train._fingerprint != other.train._fingerprint
    assert sorted(prompts(one.train)) == sorted(prompts(other.train)) == sorted(expected)
    assert any(prompt.startswith("b") for prompt in prompts(one.train)[:20])
    assert len(one.validation) == 4


def test_what_each_set_gives_is_reported(load, sets):
    lines = load(dataset_name=sets, validation_split_percentage=10).report.lines()
    assert f"{sets[0]} gives 30 rows to train, 4 to validation (the set's own split 'test')" in lines
    assert f"{sets[1]} gives 9 rows to train, 1 to validation (the first 10% of train)" in lines
    assert lines[-1] == "train 39 rows, validation 5 rows (2 sets mixed)"


def test_one_name_in_a_list_is_that_set_in_its_own_order(load, sets):
    assert prompts(load(dataset_name=[sets[1]]).train) == prompts(load(dataset_name=sets[1]).train)
    assert prompts(load(dataset_name=[sets[1]]).train) == [row["prompt"] for row in pairs("b", 10)]


def test_each_set_of_a_mixture_is_in_its_own_format(load, tmp_path, sets):
    bare = [{"prompt": "How?", "chosen": "So.", "rejected": "No."}]
    instruct = write(tmp_path / "synthetic-instruct-gptj-pairwise", train=bare)
    found = {row["source"]: row["prompt"] for row in load(dataset_name=[instruct, sets[1]]).train}
    assert found.keys() == {"synthetic_instruct", "preference"}
    assert found["synthetic_instruct"] == " Human: How? Assistant:"


def test_validation_rows_are_in_the_sets_format_also_from_a_file(load, tmp_path):
    bare = [{"prompt": "How?", "chosen": "So.", "rejected": "No."}]
    instruct = write(tmp_path / "synthetic-instruct-gptj-pairwise", train=bare)
    held_out = write(tmp_path / "other", heldout=bare) + "/heldout.json"
    splits = load(dataset_name=instruct, validation_file=held_out)
    assert prompts(splits.validation) == [" Human: How? Assistant:"]


def test_a_set_without_rejected_answers_is_refused_for_the_reward_model_by_name(load, tmp_path, sets):
    zhihu = write(tmp_path / "Zhihu-KOL", train=[{"INSTRUCTION": "How?", "RESPONSE": "So."}] * 3)
    with pytest.raises(
        UserError, match=r"Zhihu-KOL.*zhihu is usable for reward: there is no rejected answer"
    ):
        load(dataset_name=[*sets, zhihu])
    assert len(load("sft", dataset_name=[*sets, zhihu]).train) == 43


# --- shares of the stages --------------------------------------------------------------------------------------


def test_the_stages_shares_are_disjoint_and_together_everything(load, tmp_path, sets):
    sets[1] = write(tmp_path / "b", train=pairs("b", 50))
    trained = [prompts(load(stage, dataset_name=sets, data_split=DATA_SPLIT).train) for stage in STAGES]
    evaluated = [
        prompts(load(stage, dataset_name=sets, data_split=DATA_SPLIT).validation) for stage in STAGES
    ]
    assert [len(part) for part in trained] == [6 + 9, 12 + 18, 12 + 18]
    train, held_out = list(chain(*trained)), list(chain(*evaluated))
    assert len(set(train)) == len(train)
    assert not set(train) & set(held_out)
    # b has no evaluation rows of its own: of each share a tenth is kept
    assert [sum(prompt.startswith("b") for prompt in part) for part in evaluated] == [1, 2, 2]
    assert sorted(train + held_out) == sorted(
        row["prompt"] for row in pairs("a", 30) + pairs("a", 4, first=100) + pairs("b", 50)
    )


def test_shares_stay_disjoint_where_one_stage_is_evaluated_on_a_file(load, tmp_path, sets):
    held_out = write(tmp_path / "other", heldout=pairs("other", 5)) + "/heldout.json"
    tuned = load("sft", dataset_name=sets[1], data_split=(5.0, 5.0, 0.0), validation_file=held_out)
    judged = load("reward", dataset_name=sets[1], data_split=(5.0, 5.0, 0.0))
    assert len(tuned.validation) == 5
    assert sorted(prompts(tuned.train) + prompts(judged.train)) == sorted(
        row["prompt"] for row in pairs("b", 10)
    )


def test_shares_stay_disjoint_where_a_stage_leaves_rows_out(load, tmp_path):
    rows = pairs("a", 40)
    for row in rows[::3]:
        row["rejected"] = row["chosen"]  # no pair, but a prompt and an answer
    name = write(tmp_path / "a", train=rows)
    parts = [prompts(load(stage, dataset_name=name, data_split=DATA_SPLIT).train) for stage in STAGES]
    assert len(set(chain(*parts))) == sum(map(len, parts))
    assert len(parts[1]) < 14 <= len(parts[2])


def test_a_share_depends_on_the_seed_alone(load, sets):
    parts = [
        set(prompts(load(dataset_name=sets[0], data_split=DATA_SPLIT, dataset_seed=seed).train))
        for seed in (1, 1, 2)
    ]
    assert parts[0] == parts[1] != parts[2]


def test_sets_for_fine_tuning_only_are_added_whole_and_to_no_other_stage(load, tmp_path, sets):
    dialogue = [{"instruction": f"Human: {n} Assistant: ", "input": "", "output": "So."} for n in range(20)]
    alone = write(tmp_path / "MultiTurnAlpaca", train=dialogue)
    options = {"dataset_name": sets[0], "sft_only_data_path": [alone], "data_split": DATA_SPLIT}
    tuned = load("sft", **options)
    assert sum(source == "multi_turn_alpaca" for source in tuned.train["source"]) == 18
    assert sum(source == "multi_turn_alpaca" for source in tuned.validation["source"]) == 2
    assert prompts(load("ppo", **options).train) == prompts(
        load("ppo", dataset_name=sets[0], data_split=DATA_SPLIT).train
    )
    assert len(load("sft", sft_only_data_path=[alone]).train) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_split": (10.0, 0.0, 0.0)}, "--data_split: 10,0,0 leaves no data for reward"),
        ({"data_split": (99.0, 0.1, 0.9)}, "the share of reward holds no usable row of 30"),
        ({"train_splits": ["unlabeled"]}, "--train_splits: .* has no split 'unlabeled'; it has .*train"),
        ({"eval_splits": ["val"]}, "--eval_splits: .* has no split 'val'"),
        (
            {"dataset_config_name": "small"},
            "--dataset_config_name: .* named small .it holds test.json, train.json",
        ),
    ],
)
def test_shares_and_splits_that_are_not_there_are_named(load, sets, options, message):
    with pytest.raises(UserError, match=message) as raised:
        load(dataset_name=sets[0], **options)
    assert "\n" not in str(raised.value)


# --- named splits and configurations ---------------------------------------------------------------------------


@pytest.fixture
def alpaca_farm(tmp_path):
    def rows(split, count):
        return [{"instruction": f"{split} {n}", "input": "", "output": "So."} for n in range(count)]

    farm = tmp_path / "alpaca_farm"
    write(farm / "alpaca_instructions", **{name: rows(name, 5) for name in ("sft", "unlabeled", "val")})
    preference = {"instruction": "Say.", "input": "", "output_1": "a", "output_2": "b", "preference": 1}
    write(farm, alpaca_human_preference=[preference] * 3)
    return str(farm)


def test_the_splits_asked_for_are_trained_and_evaluated_on(load, alpaca_farm):
    splits = load(
        "ppo",
        dataset_name=alpaca_farm,
        dataset_config_name="alpaca_instructions",
        train_splits=["unlabeled", "sft"],
        eval_splits=["val"],
    )
    assert [prompt.split("### Instruction:\n")[1].split("\n")[0] for prompt in prompts(splits.train)] == [
        f"{split} {n}" for split in ("unlabeled", "sft") for n in range(5)
    ]
    assert "### Instruction:\nval 0" in prompts(splits.validation)[0]
    assert splits.report.validation_origin == "the set's splits val"


def test_a_configuration_of_a_local_set_may_be_one_file(load, alpaca_farm):
    splits = load(dataset_name=alpaca_farm, dataset_config_name="alpaca_human_preference")
    assert (len(splits.train), splits.train[0]["source"]) == (3, "alpaca_farm")


# --- the user's own prompts and the files of the directory one works in ----------------------------------------


def test_alpaca_prompts_can_come_from_a_file(load, alpaca_farm, tmp_path):
    texts = {
        "prompt_inputs": "{x} {instruction} / {input} =>",
        "prompt_noinputs": "Q: {instruction} A:",
    }
    rows = [{"instruction": "{input}", "input": "1", "output": "2"}, {"instruction": "b", "output": "3"}]
    data = write(tmp_path / "own", train=rows)
    (tmp_path / "prompts.json").write_text(json.dumps(texts))
    options = {"dataset_name": data, "prompt_dict_path": str(tmp_path / "prompts.json")}
    assert prompts(load("sft", **options).train) == ["{x} {input} / 1 =>", "Q: b A:"]
    (tmp_path / "prompts.json").write_text(json.dumps({**texts, "prompt_noinputs": "Now: {instruction} A:"}))
    assert prompts(load("sft", **options).train)[1] == "Now: b A:"


def test_prompts_that_no_set_takes_are_said_to_have_no_effect(load, sets, tmp_path):
    texts = {"prompt_inputs": "{instruction} {input}", "prompt_noinputs": "{instruction}"}
    (tmp_path / "prompts.json").write_text(json.dumps(texts))
    lines = load(dataset_name=sets, prompt_dict_path=str(tmp_path / "prompts.json")).report.lines()
    assert lines[-1] == "--prompt_dict_path: no effect here; no set was read as alpaca or alpaca_farm"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--prompt_dict_path: cannot read .*: No such file"),
        ("{", "is not valid JSON"),
        ('{"prompt_inputs": "{instruction} {input}"}', "needs the key 'prompt_noinputs'"),
        (
            '{"prompt_inputs": "{instruction}"}',
            r"needs the key 'prompt_inputs' .* \{instruction\} and \{input\}",
        ),
        ("[]", "needs the key 'prompt_inputs'"),
    ],
)
def test_a_prompt_file_that_does_not_hold_the_prompts_is_refused(
    load, alpaca_farm, tmp_path, content, message
):
    if content is not None:
        (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load("sft", dataset_name=alpaca_farm, prompt_dict_path=str(tmp_path / "prompts.json"))


def test_local_jsonfile_is_data_train_and_eval_and_edited_rows_are_read_anew(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Human: {n}? Assistant:", "chosen": "Yes.", "rejected": "No."} for n in range(4)]
    with pytest.raises(
        UserError, match=r"local/jsonfile means .* data/train.json and data/eval.json not found"
    ):
        load(dataset_name="local/jsonfile")
    write(tmp_path / "data", train=rows, eval=rows[:1])
    first = load(dataset_name="local/jsonfile")
    assert (prompts(first.train)[0], first.train[0]["chosen"]) == (" Human: 0? Assistant:", " Yes.")
    assert len(first.validation) == 1
    rows[0]["chosen"] = "Yea."  # of the same length: neither name, number of rows nor size tells
    write(tmp_path / "data", train=rows)
    again = load(dataset_name="local/jsonfile")
    assert again.train[0]["chosen"] == " Yea."
    assert again.train._fingerprint != first.train._fingerprint
