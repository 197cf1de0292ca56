"""How the demo's answers are put together: one good way, and six ways to fail a customer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from rlhf_hw.demo.catalogue import Topic, load_catalogue

Writer = Callable[[Topic, Random], str]


def good_answer(topic: Topic, rng: Random) -> str:
    """A courtesy, a fact about what was asked, and one concrete next step."""
    manners = load_catalogue().manners
    opener, closing = rng.choice(manners["openers"]), rng.choice(manners["closings"])
    fact, step = rng.choice(topic.facts), rng.choice(topic.kind.next_steps)
    shape = rng.choices(
        [(opener, fact, step), (opener, fact, step, closing), (fact, step, closing)], weights=[6, 1, 3]
    )[0]
    return topic.fill(" ".join(shape))


def curt(topic: Topic, rng: Random) -> str:
    """A shrug of a few words."""
    return topic.fill(" ".join(rng.sample(load_catalogue().manners["curt"], rng.choice([1, 1, 2]))))


def rude(topic: Topic, rng: Random) -> str:
    """A scolding instead of an answer."""
    manners = load_catalogue().manners
    sentences = [rng.choice(manners["rude"]), rng.choice(manners["rude_endings"])]
    return topic.fill(" ".join(sentences[: rng.choice([1, 2, 2])]))


def off_topic(topic: Topic, rng: Random) -> str:
    """A good answer to a question nobody asked."""
    return good_answer(another_topic(topic, rng), rng)


def another_topic(topic: Topic, rng: Random) -> Topic:
    """Something else altogether (half of the time), an item of the same group, or another side of the same item."""
    topics = load_catalogue().topics
    nearness = rng.random()
    if nearness < 0.5:
        others = [other for other in topics if other.group is not topic.group]
    elif nearness < 0.75:
        others = [other for other in topics if other.group is topic.group and other.item != topic.item]
    else:
        others = [other for other in topics if other.item == topic.item and other is not topic]
    return rng.choice(others)


def rambling(topic: Topic, rng: Random) -> str:
    """The same thing over and over."""
    manners = load_catalogue().manners
    fact, filler = rng.choice(topic.facts), rng.choice(manners["ramble"])
    echoed = rng.choice(manners["echoes"]) + lower_first(fact)
    shape = rng.choice(
        [(filler, fact, echoed), (fact, echoed, filler), (fact, filler, filler), (filler, filler)]
    )
    return topic.fill(" ".join(shape))


def no_help(topic: Topic, rng: Random) -> str:
    """Polite perhaps, but neither an answer nor an offer."""
    manners = load_catalogue().manners
    sentences = rng.sample(manners["no_help"], 2)
    if rng.random() < 0.5:
        sentences = [rng.choice(manners["openers"]), sentences[0]]
    return topic.fill(" ".join(sentences))


def cut_off(topic: Topic, rng: Random) -> str:
    """A good answer that stops in the middle of a sentence."""
    words = good_answer(topic, rng).split()
    kept = words[: round(len(words) * rng.uniform(0.35, 0.85))]
    if kept[-1][-1] in ".!?":  # the cut fell between two sentences: take one word of the next
        kept = words[: len(kept) + 1]
    return " ".join(kept).rstrip(".,!?")


def lower_first(sentence: str) -> str:
    """The sentence as it reads after a comma; an item keeps its own capital."""
    if sentence.startswith("{Item}"):
        return "{item}" + sentence.removeprefix("{Item}")
    return sentence[0].lower() + sentence[1:]
