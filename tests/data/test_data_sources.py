import csv
import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_hw.data.example import Message, from_row
from rlhf_hw.data.rows import from_files
from rlhf_hw.data.sources import DataSource, load_splits
from rlhf_hw.errors import UserError

ROWS = [
    {"prompt": f"Question {number}? Grüße 世界 🌍\n", "chosen": f"Yes, {number}", "rejected": f"No, {number}"}
    for number in range(20)
]


@pytest.fixture
def load(tmp_path):
    """load_splits with a cache of the test's own."""

    def load(purpose="reward", **options):
        return load_splits(DataSource(cache_dir=str(tmp_path / "cache"), **options), purpose)

    return load


def write(path, rows):
    """The same rows in the kind of file that the name says."""
    opener = gzip.open if path.suffix == ".gz" else open
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "json":
            json.dump(rows, file, indent=1)
        elif kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


# --- kinds of source -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.csv", "a.parquet", "a.json.gz", "a.jsonl.gz", "a.csv.gz"], ids=str
)
def test_the_same_rows_come_out_of_every_kind_of_file(load, tmp_path, name):
    path = str(write(tmp_path / name, ROWS))
    for option in ({"train_file": path}, {"dataset_name": path}):
        train = load(**option).train
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in train] == [
            tuple(row.values()) for row in ROWS
        ]


@pytest.mark.parametrize("as_dict", [True, False])
def test_the_same_rows_come_out_of_a_save_to_disk_directory(load, tmp_path, as_dict):
    saved = datasets.Dataset.from_list(ROWS)
    if as_dict:
        saved = datasets.DatasetDict({"train": saved, "test": saved.select(range(3))})
    saved.save_to_disk(tmp_path / "saved")
    splits = load(dataset_name=str(tmp_path / "saved"))
    assert list(splits.train["chosen"]) == [row["chosen"] for row in ROWS]
    assert (len(splits.validation) if splits.validation else None) == (3 if as_dict else None)


def test_a_directory_of_split_files_gives_its_splits_and_joins_shards(load, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:5])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[5:])
    write(tmp_path / "test.jsonl", ROWS[:1])
    write(tmp_path / "validation.jsonl.gz", ROWS[:2])
    splits = load(dataset_name=str(tmp_path))
    assert list(splits.train["chosen"]) == [row["chosen"] for row in ROWS]
    assert len(splits.validation) == 2
    assert "'validation'" in splits.report.validation_origin


def test_a_directory_without_train_data_says_what_it_holds(load, tmp_path):
    write(tmp_path / "one.json", ROWS)
    write(tmp_path / "two.csv", ROWS)
    with pytest.raises(UserError, match=r"--dataset_name: .*one\.json, two\.csv"):
        load(dataset_name=str(tmp_path))


def test_a_local_directory_wins_over_a_hub_name(load, tmp_path, monkeypatch):
    (tmp_path / "Intel" / "orca_dpo_pairs").mkdir(parents=True)
    write(tmp_path / "Intel" / "orca_dpo_pairs" / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(load(dataset_name="Intel/orca_dpo_pairs").train) == len(ROWS)


@pytest.mark.parametrize(
    "name", ["./no/such/dir", "/no/such/file", "missing.json", "a/b/c", "with space/x", "-x"]
)
def test_what_is_neither_path_nor_hub_name_is_refused_before_the_hub_is_asked(load, name):
    with pytest.raises(UserError, match="neither a file or directory here nor a hub name"):
        load(dataset_name=name)


def test_an_unreachable_hub_is_one_line_that_says_what_was_tried_and_no_token(load, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as raised:
        load(
            dataset_name="someone/something",
            dataset_config_name="small",
            revision="v2",
            token="hf_very_secret",
        )
    message = str(raised.value)
    assert all(
        word in message
        for word in ("someone/something", "config small", "revision v2", "with an access token")
    )
    assert "\n" not in message
    assert "hf_very_secret" not in message + repr(DataSource(token="hf_very_secret"))


def test_a_hub_set_is_asked_for_with_token_config_and_revision(load, monkeypatch):
    asked = {}

    def load_dataset(name, config, **options):
        asked.update(name=name, config=config, **options)
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train = load(dataset_name="owner/name", dataset_config_name="c", revision="r", token="t").train
    assert len(train) == len(ROWS)
    expected = {"name": "owner/name", "config": "c", "revision": "r", "token": "t", "streaming": False}
    assert expected.items() <= asked.items()


def test_streaming_reads_no_more_rows_than_were_asked_for(load, monkeypatch):
    given = []

    def endless():
        while True:
            given.append(ROWS[len(given) % len(ROWS)])
            yield given[-1]

    stream = datasets.IterableDatasetDict({"train": datasets.IterableDataset.from_generator(endless)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    assert len(load(dataset_name="owner/name", streaming=True, max_train_samples=7).train) == 7
    assert len(given) <= 8
    with pytest.raises(UserError, match="--streaming: needs --max_train_samples"):
        load(dataset_name="owner/name", streaming=True)


def test_lines_of_a_text_file_are_rows_of_target_text(load, tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\r\n")
    rows = [from_row(row) for row in load("sft", train_file=str(tmp_path / "a.txt")).train]
    assert [(row.prompt, row.chosen) for row in rows] == [("", "One."), ("", "Two.")]


# --- what files may hold ---------------------------------------------------------------------------------------


def test_csv_keeps_quotes_commas_line_ends_and_words_that_look_like_null(load, tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text(
        'prompt,chosen,rejected\r\n"He said ""hi"", twice","line 1\nline 2",None\r\nNA,007,nan\r\n',
        encoding="utf-8-sig",
        newline="",
    )
    rows = [from_row(row) for row in load(train_file=str(path)).train]
    assert [(row.prompt, row.chosen, row.rejected) for row in rows] == [
        ('He said "hi", twice', "line 1\nline 2", "None"),
        ("NA", "007", "nan"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"\n', r"a\.jsonl, line 3: not valid JSON"),
        ("a.json", '[{"text": "a"},\n {"text": }]', r"a\.json, line 2: not valid JSON"),
        ("a.csv", 'text\n"never closed\n', r"a\.csv, line \d: not valid csv"),
        ("a.jsonl.gz", "not packed", r"a\.jsonl\.gz: damaged gzip"),
        ("a.parquet", "not parquet", r"a\.parquet: not a readable parquet"),
        ("a.xlsx", "?", r"a\.xlsx: unknown kind of file"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "[1]\n2\n", "holds no rows that are objects"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(load, tmp_path, name, content, found):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=found):
        load("sft", train_file=str(tmp_path / name))


def test_damage_behind_the_first_row_is_found_too(load, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3000 + '{"text": "cut of')
    with pytest.raises(UserError, match=r"a\.jsonl, line 3001"):
        load("sft", train_file=str(tmp_path / "a.jsonl"))


def test_text_that_is_not_utf8_is_named(load, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: not UTF-8"):
        load("sft", train_file=str(tmp_path / "a.jsonl"))


# --- counting and refusing -------------------------------------------------------------------------------------


def test_malformed_rows_are_left_out_counted_and_numbered(load, write_jsonl):
    bad = [
        {**ROWS[0], "chosen": None},
        {**ROWS[0], "chosen": "\ud83d"},
        {**ROWS[0], "prompt": 5},
        ["no", "object"],
    ]
    path = write_jsonl([ROWS[0], *bad, *ROWS[1:], {**ROWS[0], "chosen": None}])
    splits = load(train_file=path, max_malformed_fraction=0.5)
    assert list(splits.train["chosen"]) == [row["chosen"] for row in ROWS]
    (report,) = splits.report.files
    assert {reason: (rows.count, rows.first_rows) for reason, rows in report.malformed.items()} == {
        "chosen is null or missing": (2, [2, 25]),
        "the text holds half of a surrogate pair": (1, [3]),
        "prompt is int, not text": (1, [4]),
        "the row is list, not an object": (1, [5]),
    }
    assert (report.read, report.converted, report.usable) == (25, 20, 20)


def test_more_malformed_rows_than_allowed_are_refused(load, write_jsonl):
    path = write_jsonl([*ROWS, {**ROWS[0], "chosen": None}])
    with pytest.raises(
        UserError, match=r"1 of 21 rows are malformed.*chosen is null.*row 21.*max_malformed_fraction"
    ):
        load(train_file=path)
    assert len(load(train_file=path, max_malformed_fraction=0.05).train) == 20


def test_a_csv_row_with_too_many_fields_is_malformed(load, tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\nc,d,e\n")
    with pytest.raises(UserError, match="more fields than the header"):
        load("sft", train_file=str(tmp_path / "a.csv"))


def test_reward_drops_pairs_of_one_text_and_counts_them(load, write_jsonl):
    splits = load(train_file=write_jsonl([*ROWS, {"prompt": "a", "chosen": "same", "rejected": "same"}]))
    (reason,) = splits.report.files[0].dropped
    assert "same text" in reason
    assert splits.report.files[0].dropped[reason].first_rows == [21]
    assert len(splits.train) == 20


@pytest.mark.parametrize(
    ("row", "fit_for"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"sft", "reward", "ppo"}),
        ({"prompt": "a", "completion": "b"}, {"sft", "ppo"}),
        ({"prompt": "a"}, {"ppo"}),
        ({"text": "a"}, {"sft"}),
    ],
)
def test_each_purpose_takes_the_sets_that_have_what_it_needs(load, write_jsonl, row, fit_for):
    path = write_jsonl([row])
    for purpose in ("sft", "reward", "ppo"):
        if purpose in fit_for:
            assert len(load(purpose, train_file=path).train) == 1
        else:
            with pytest.raises(UserError, match=f"usable for {purpose}: .*(answer|prompt)"):
                load(purpose, train_file=path)


# --- splitting -------------------------------------------------------------------------------------------------


def answers(dataset):
    return list(dataset["chosen"])


def test_a_split_parts_the_rows_without_loss_or_overlap(load, write_jsonl):
    path = write_jsonl(ROWS)
    for options in ({"validation_split_percentage": 12}, {"eval_dataset_size": 3}):
        splits = load(train_file=path, **options)
        assert len(splits.validation) == 3
        assert sorted(answers(splits.train) + answers(splits.validation)) == sorted(
            row["chosen"] for row in ROWS
        )


def test_a_percentage_is_the_first_rows_and_a_size_is_drawn_by_seed(load, write_jsonl):
    path = write_jsonl(ROWS)
    first = load(train_file=path, validation_split_percentage=2).validation
    assert answers(first) == [ROWS[0]["chosen"]]
    drawn = [
        answers(load(train_file=path, eval_dataset_size=5, dataset_seed=seed).validation)
        for seed in (42, 42, 43)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_given_validation_data_win_over_splitting(load, write_jsonl):
    train, held_out = write_jsonl(ROWS[:10]), write_jsonl(ROWS[10:], "validation.jsonl")
    splits = load(
        train_file=train, validation_file=held_out, validation_split_percentage=20, eval_dataset_size=2
    )
    assert (len(splits.train), len(splits.validation)) == (10, 10)
    assert held_out in splits.report.validation_origin


def test_sample_limits_keep_the_first_rows(load, write_jsonl):
    splits = load(train_file=write_jsonl(ROWS), eval_dataset_size=9, max_train_samples=4, max_eval_samples=2)
    assert (len(splits.train), len(splits.validation)) == (4, 2)
    assert (splits.report.train_rows, splits.report.validation_rows) == (4, 2)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({}, "--dataset_name, --train_file: neither given"),
        ({"dataset_name": "a", "train_file": "b"}, "both given"),
        ({"train_file": "no-such.json"}, "--train_file: no-such.json is not a file"),
        ({"dataset_name": "x", "validation_split_percentage": 100}, "--validation_split_percentage: 100"),
        ({"dataset_name": "x", "max_train_samples": 0}, "--max_train_samples: 0"),
        ({"dataset_name": "x", "max_malformed_fraction": 2}, "--max_malformed_fraction: 2"),
    ],
)
def test_flags_that_cannot_be_are_named(load, options, flag):
    with pytest.raises(UserError, match=flag):
        load(**options)


def test_a_validation_set_as_large_as_train_is_refused(load, write_jsonl):
    with pytest.raises(UserError, match="--eval_dataset_size: 20 rows for validation leave none"):
        load(train_file=write_jsonl(ROWS), eval_dataset_size=20)


# --- tasks and the cache ---------------------------------------------------------------------------------------


def test_task_chat_makes_messages_of_text_prompts(load, tmp_path):
    orca = {"system": "Be kind.", "question": "Why?", "chosen": "a", "rejected": "b"}
    alpaca = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    expected = {
        "p.jsonl": (ROWS[0], (Message("user", ROWS[0]["prompt"]),)),
        "o.jsonl": (orca, (Message("system", "Be kind."), Message("user", "Why?"))),
        "a.jsonl": (alpaca, (Message("user", "Add.\n\n1, 2"),)),
    }
    for name, (row, prompt) in expected.items():
        train = load("sft", train_file=str(write(tmp_path / name, [row])), task="chat").train
        assert from_row(train[0]).prompt == prompt


def test_a_second_run_reads_no_row_again_and_an_edited_file_is_read_anew(load, write_jsonl, monkeypatch):
    path = write_jsonl([*ROWS, {**ROWS[0], "chosen": None}])
    first = load(train_file=path, max_malformed_fraction=0.1)

    def tripwire(*_):
        raise AssertionError("a row was converted again")

    with monkeypatch.context() as watch:
        watch.setattr("rlhf_hw.data.convert._convert_row", tripwire)
        second = load(train_file=path, max_malformed_fraction=0.1)
    assert second.report == first.report
    assert list(second.train) == list(first.train)
    assert second.train._fingerprint == first.train._fingerprint

    write_jsonl([{**row, "chosen": row["chosen"].upper()} for row in ROWS])
    assert load(train_file=path).train[0]["chosen"] == "YES, 0"


def test_a_file_is_known_by_its_content_not_by_its_path(tmp_path):
    one, copy, other = (tmp_path / name for name in ("one.jsonl", "copy.jsonl", "other.jsonl"))
    for path in (one, copy):
        write(path, ROWS)
    write(other, [*ROWS[:-1], {**ROWS[-1], "chosen": "Yes, 91"}])
    fingerprints = [from_files([path]).fingerprint for path in (one, copy, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
