"""The shipped data set: what it promises to the stages that train on it and to the score that judges them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from rlhf_hw.demo.catalogue import load_catalogue, topic_of_prompt
from rlhf_hw.demo.gold import gold_score, items_named
from rlhf_hw.demo.make_data import DATA_DIRECTORY, UNSEEN_TOPICS, make_data

Rows = list[dict[str, str]]


def read(name: str) -> Rows:
    return [json.loads(line) for line in (DATA_DIRECTORY / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> Rows:
    return read("train.jsonl")


@pytest.fixture(scope="module")
def heldout() -> Rows:
    return read("heldout.jsonl")


@pytest.fixture(scope="module")
def demonstrations() -> Rows:
    return read("demonstrations.jsonl")


def test_shipped_files_are_what_the_generator_writes() -> None:
    for name, content in make_data().files().items():
        assert (DATA_DIRECTORY / name).read_bytes() == content.encode(), name


def test_another_seed_writes_other_data() -> None:
    assert make_data(1).train != make_data(2).train


def test_files_fit_in_a_megabyte_and_a_half() -> None:
    assert sum(path.stat().st_size for path in DATA_DIRECTORY.glob("*.jsonl")) <= 1_500_000


def test_columns_are_those_of_the_builtin_formats(train: Rows, heldout: Rows, demonstrations: Rows) -> None:
    assert all(list(row) == ["prompt", "chosen", "rejected"] for row in [*train, *heldout])
    assert all(list(row) == ["prompt", "completion"] for row in demonstrations)


def test_no_prompt_appears_twice(train: Rows, heldout: Rows, demonstrations: Rows) -> None:
    counts = Counter(row["prompt"] for row in [*train, *heldout, *demonstrations])
    assert counts.most_common(1)[0][1] == 1


def test_no_heldout_answer_is_seen_in_training(train: Rows, heldout: Rows, demonstrations: Rows) -> None:
    seen = {row["chosen"] for row in train} | {row["completion"] for row in demonstrations}
    assert not seen & {row["chosen"] for row in heldout}


def test_some_heldout_topics_never_occur_in_training(
    train: Rows, heldout: Rows, demonstrations: Rows
) -> None:
    trained = {topic_of_prompt(row["prompt"]).name for row in [*train, *demonstrations]}
    asked = {topic_of_prompt(row["prompt"]).name for row in heldout}
    assert len(asked - trained) == UNSEEN_TOPICS
    assert asked & trained


def test_every_item_and_every_kind_of_question_occurs_in_training(demonstrations: Rows) -> None:
    topics = [topic_of_prompt(row["prompt"]) for row in demonstrations]
    catalogue = load_catalogue()
    assert {topic.item for topic in topics} == set(catalogue.items)
    assert {topic.kind.name for topic in topics} == {topic.kind.name for topic in catalogue.topics}


def test_prompts_name_the_topic_they_were_made_for(train: Rows) -> None:
    for row in train:
        assert items_named(row["prompt"]) == [topic_of_prompt(row["prompt"]).item]


def test_every_question_belongs_to_one_topic() -> None:
    for topic in load_catalogue().topics:
        for question in topic.kind.questions:
            assert topic_of_prompt(f"Customer: {topic.fill(question)}\nAssistant:") is topic


def test_no_sentence_of_the_catalogue_names_an_item_outside_its_slots() -> None:
    catalogue = load_catalogue()
    templates = {phrase for phrases in catalogue.manners.values() for phrase in phrases}
    for topic in catalogue.topics:
        templates |= {*topic.facts, *topic.kind.questions, *topic.kind.next_steps}
    for template in templates:
        assert items_named(template.replace("{item}", "").replace("{Item}", "")) == [], template


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_chosen_answers_are_good_and_beat_rejected_ones(name: str) -> None:
    rows = read(name)
    chosen = [gold_score(row["prompt"], row["chosen"]) for row in rows]
    rejected = [gold_score(row["prompt"], row["rejected"]) for row in rows]
    assert min(chosen) >= 0.95
    assert sum(good > bad for good, bad in zip(chosen, rejected, strict=True)) >= 0.97 * len(rows)


def test_demonstrations_are_of_mixed_quality(demonstrations: Rows) -> None:
    scores = [gold_score(row["prompt"], row["completion"]) for row in demonstrations]
    assert 0.28 <= sum(score >= 0.95 for score in scores) / len(scores) <= 0.38
    assert sum(score <= 0.60 for score in scores) / len(scores) >= 0.40


def test_answers_are_of_the_stated_length_and_varied(train: Rows) -> None:
    lengths = [len(row["chosen"].split()) for row in train]
    assert min(lengths) >= 10
    assert sorted(lengths)[len(lengths) * 95 // 100] <= 40
    beginnings = Counter(" ".join(row["chosen"].split()[:3]) for row in train)
    assert beginnings.most_common(1)[0][1] <= 0.1 * len(train)


def test_a_prompt_from_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="catalogue"):
        gold_score("What is the capital of France?", " Paris.")
