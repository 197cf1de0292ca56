"""Sets on the hub whose loading script `datasets` no longer runs. The hub itself is played here."""

import datasets
import pytest

from rlhf_hw.data import hub
from rlhf_hw.data.hub import parquet_files
from rlhf_hw.data.sources import DataSource, load_splits
from rlhf_hw.errors import UserError

FILES = [
    ".gitattributes",
    "alpaca_instructions/sft/0000.parquet",
    "alpaca_instructions/unlabeled/0001.parquet",
    "alpaca_instructions/unlabeled/0000.parquet",
    "alpaca_human_preference/partial-preference/0000.parquet",
]


def test_the_files_of_a_configuration_are_told_by_split_in_order():
    assert parquet_files(FILES, "alpaca_instructions") == {
        "sft": ["alpaca_instructions/sft/0000.parquet"],
        "unlabeled": [f"alpaca_instructions/unlabeled/000{number}.parquet" for number in (0, 1)],
    }
    assert list(parquet_files(FILES, "alpaca_human_preference")) == ["preference"]
    assert list(parquet_files(FILES[:4], None)) == ["sft", "unlabeled"]
    assert list(parquet_files([*FILES, "all/train/0000.parquet"], None)) == ["train"]


@pytest.mark.parametrize(("files", "config"), [(FILES, None), (FILES, "small"), ([], "default")])
def test_a_configuration_that_is_not_there_is_told_with_those_that_are(files, config):
    found = "alpaca_human_preference, alpaca_instructions" if files else "none"
    with pytest.raises(ValueError, match=f"its configurations are {found}"):
        parquet_files(files, config)


@pytest.fixture
def scripted(monkeypatch):
    """A hub with one set, mkqa, that has a script and the files that the hub made of it; what was asked."""
    asked = []
    row = {"queries": {"ja": "どう"}, "answers": {"ja": [{"text": "そう"}]}}

    def load_dataset(name, *_, **options):
        asked.append((name, options.get("data_files")))
        if name != "parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found mkqa.py")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([row])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_files", lambda name, token: ["mkqa/train/0000.parquet"])
    return asked


def test_a_set_with_a_script_is_read_from_the_hubs_own_files_under_the_name_asked_for(scripted, tmp_path):
    splits = load_splits(DataSource("mkqa-Japanese", cache_dir=str(tmp_path)), "sft")
    url = "hf://datasets/apple/mkqa@refs/convert/parquet/mkqa/train/0000.parquet"
    assert scripted == [("apple/mkqa", None), ("parquet", {"train": [url]})]
    assert (splits.train[0]["prompt"], splits.train[0]["chosen"]) == (" Human: どう Assistant:", " そう")
    assert splits.report.files[0].label == "mkqa-Japanese (train)"


def test_another_failure_of_the_hub_is_not_taken_for_a_script(monkeypatch, tmp_path):
    def load_dataset(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"apple/mkqa, .*RuntimeError: something else"):
        load_splits(DataSource("mkqa-Chinese", cache_dir=str(tmp_path)), "sft")
