"""The gold score: each part by hand, and the ways to game it that must not pay."""

from __future__ import annotations

import random

import pytest

from rlhf_hw.demo.catalogue import Topic, load_catalogue, topic_of_prompt
from rlhf_hw.demo.gold import (
    complete_ending,
    gold_parts,
    gold_score,
    no_repetition,
    no_rudeness,
    offers_next_step,
    on_topic,
    polite,
    readable,
    sensible_length,
)

PROMPT = "Customer: Hello! How often should I water basil?\nAssistant:"
FACT = "Two small drinks a week are enough for basil in a pot."
STEP = "Try pushing a finger into the soil before you water again."
GOOD = f" Of course! {FACT} {STEP}"


@pytest.fixture(scope="module")
def watering_basil() -> Topic:
    return topic_of_prompt(PROMPT)


def test_a_good_answer_has_the_full_score() -> None:
    assert gold_score(PROMPT, GOOD) == pytest.approx(1.0)
    assert set(gold_parts(PROMPT, GOOD).values()) == {1.0}


def test_the_topic_is_item_and_fact_half_each(watering_basil: Topic) -> None:
    assert on_topic(watering_basil, FACT) == 1.0
    assert on_topic(watering_basil, "I have seen basil before.") == 0.5
    assert on_topic(watering_basil, FACT.replace("basil", "mint")) == 0.0
    assert on_topic(watering_basil, FACT + " I like mint.") == 0.5
    assert on_topic(watering_basil, "") == 0.0


def test_a_fact_that_answers_another_question_does_not_count(watering_basil: Topic) -> None:
    assert on_topic(watering_basil, "Early spring is the best time to sow basil in small pots.") == 0.5


def test_courtesies_are_recognised() -> None:
    assert polite("Thanks for asking!") == polite("I am HAPPY TO help.") == 1.0
    assert polite(FACT) == polite("") == 0.0


def test_an_offer_is_a_finished_sentence_that_names_a_step() -> None:
    assert offers_next_step(STEP) == 1.0
    assert offers_next_step("I can help.") == 0.0
    assert offers_next_step(STEP.rstrip(".")) == 0.0
    assert offers_next_step("Nothing I can show you a small watering can") == 0.0


@pytest.mark.parametrize("ending", ["Come in.", "Are you well?", "Good luck!", "Good luck! "])
def test_a_sentence_may_end_so(ending: str) -> None:
    assert complete_ending(ending) == 1.0


@pytest.mark.parametrize(
    "ending", ["", "Two small drinks a", "Two small drinks a.", "Good luck! I can", "..."]
)
def test_a_sentence_may_not_end_so(ending: str) -> None:
    assert complete_ending(ending) == 0.0


def test_repetition_is_counted_in_triples_of_words() -> None:
    assert no_repetition(FACT) == no_repetition("") == 1.0
    # 12 words twice: 22 triples, 10 of them repeated, which is over 30 %
    assert no_repetition(f"{FACT} {FACT}") == 0.0


def test_length_is_full_between_10_and_45_words() -> None:
    assert [sensible_length("word " * n) for n in (0, 5, 10, 45, 60, 75, 100)] == [0, 0.5, 1, 1, 0.5, 0, 0]


def test_rudeness_leaves_a_fifth() -> None:
    assert no_rudeness(GOOD) == 1.0
    assert no_rudeness("That is a silly question about basil.") == 0.2


def test_no_good_answer_is_taken_for_a_rude_one() -> None:
    catalogue = load_catalogue()
    said = {*catalogue.manners["openers"], *catalogue.manners["closings"]}
    for topic in catalogue.topics:
        said |= {*topic.facts, *topic.kind.next_steps}
    assert [text for text in said if no_rudeness(text) < 1.0] == []


def test_every_rude_phrase_of_the_catalogue_is_recognised() -> None:
    manners = load_catalogue().manners
    assert [text for text in (*manners["rude"], *manners["rude_endings"]) if no_rudeness(text) == 1.0] == []


def test_shuffled_words_are_not_readable() -> None:
    words = GOOD.split()
    random.Random(0).shuffle(words)
    assert readable(GOOD) == 1.0
    assert readable(" ".join(words)) == 0.0
    assert gold_score(PROMPT, " ".join(words)) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        " basil water thank you please happy to help basil soil drinks week pot.",
        " Basil. Water. Thanks. Glad. I can show you.",
        " Of course! Of course! Of course! Of course! Of course! Of course!",
        GOOD * 3,
        f"{GOOD} {FACT} {FACT}",
        " basil" * 30,
        "",
        " .",
        "\n\n",
    ],
)
def test_stuffing_and_repeating_do_not_pay(answer: str) -> None:
    assert gold_score(PROMPT, answer) <= 0.15


def test_a_second_helping_of_everything_does_not_raise_the_score() -> None:
    more = " Thanks for asking! Basil likes a light drink whenever the top of the soil feels dry."
    assert gold_score(PROMPT, GOOD + more * 2) < gold_score(PROMPT, GOOD)


def test_every_fault_costs_something() -> None:
    full = gold_score(PROMPT, GOOD)
    for worse in (
        f" {FACT} {STEP}",  # no courtesy
        f" Of course! {FACT}",  # no offer
        f" Of course! {STEP}",  # no fact
        GOOD.replace("basil", "mint"),
        GOOD[:-12],
        f" That is a silly question about basil. {FACT} {STEP}",
    ):
        assert gold_score(PROMPT, worse) <= full - 0.14


def test_scores_stay_between_0_and_1() -> None:
    for answer in ("", GOOD, GOOD * 10, "é 漢字 \u0000", "a" * 5000):
        assert 0.0 <= gold_score(PROMPT, answer) <= 1.0
