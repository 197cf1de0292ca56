"""The gold score: how good an answer is, measured by rules that no training stage ever sees.

A reward model is a guess at what people want, and PPO can learn to please the guess instead. So the demo is judged
by something else: a programme that knows the catalogue. It is a product of

- *quality*, a weighted mean of what a good answer has: `on_topic` 0.40, `polite` 0.15, `offers_next_step` 0.25,
  `complete_ending` 0.20;
- *soundness*, factors that take the points away again: `readable`, `no_repetition`, `sensible_length`, `no_rudeness`.

Listing keywords does not pay: word salad is not `readable`, the same sentence twice is repetition, several answers in
one are too long, and a fact counts only inside one sentence. Every part is a number in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from rlhf_hw.demo.answers import lower_first
from rlhf_hw.demo.catalogue import Topic, load_catalogue, topic_of_prompt

ITEM = "<item>"
START, END = "<s>", "</s>"

COURTESIES = re.compile(
    r"\b(thank you|thanks|happy to|glad|pleasure|of course|certainly|welcome|good question|lovely day"
    r"|ask me anything)\b",
    re.IGNORECASE,
)
RUDENESS = re.compile(
    r"\b(silly|fool|stupid|boring|bothering|wasting|tired of|better things to do|go away|not my (problem|department)"
    r"|ask someone else|stop asking|do not ask me|everybody knows|really not know|figure it out|listened"
    r"|who knows|whatever|^look it up|[.?] look it up|no idea|it depends|read the sign)\b",
    re.IGNORECASE,
)
OFFER = re.compile(
    r"^(i can|let me|would you like|try|start|bring|come to|come by|tell me|ask|show me|follow me|give me|leave me"
    r"|fill in)\b",
    re.IGNORECASE,
)
SHORTEST_OFFER = 5  # words: "I can help." names no step
LAST_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "of",
        "to",
        "at",
        "for",
        "from",
        "as",
        "if",
        "when",
        "while",
        "your",
        "my",
        "our",
        "their",
        "its",
        "is",
        "are",
        "be",
        "because",
        "so",
        "which",
    ]
)  # no English sentence ends in one of these
FILLER_WORDS = LAST_WORDS | frozenset(
    [
        "i",
        "we",
        "you",
        "in",
        "on",
        "by",
        "with",
        "about",
        "that",
        "it",
        "they",
        "them",
        "he",
        "she",
        "this",
        "these",
        "those",
        "can",
        "will",
        "do",
        "does",
        "have",
        "has",
        "not",
        "no",
        "more",
        "most",
        "very",
        "all",
        "any",
        "one",
        "two",
        "who",
        "what",
        "where",
        "how",
        "until",
        "before",
        "after",
        "good",
        "best",
        "only",
    ]
)  # words that say nothing about a fact


def gold_score(prompt: str, response: str) -> float:
    """How good `response` is as an answer to `prompt`, in [0, 1].

    Raises:
        ValueError: the prompt holds no question of the catalogue.
    """
    topic = topic_of_prompt(prompt)
    quality = (
        0.40 * on_topic(topic, response)
        + 0.15 * polite(response)
        + 0.25 * offers_next_step(response)
        + 0.20 * complete_ending(response)
    )
    soundness = (
        readable(response) * no_repetition(response) * sensible_length(response) * no_rudeness(response)
    )
    return quality * soundness


def gold_parts(prompt: str, response: str) -> dict[str, float]:
    """Every part of the gold score by its name, for a report."""
    return {
        "on_topic": on_topic(topic_of_prompt(prompt), response),
        "polite": polite(response),
        "offers_next_step": offers_next_step(response),
        "complete_ending": complete_ending(response),
        "readable": readable(response),
        "no_repetition": no_repetition(response),
        "sensible_length": sensible_length(response),
        "no_rudeness": no_rudeness(response),
    }


# --- quality -------------------------------------------------------------------------------------------------------


def on_topic(topic: Topic, response: str) -> float:
    """The item asked about is named (half), and a sentence states a fact that answers the question (half).

    Another item in the answer halves the score; without the item asked about there is none.
    """
    named = set(items_named(response))
    if topic.item not in named:
        return 0.0
    fact = max((_fact_overlap(topic, sentence) for sentence in sentences(response)), default=0.0)
    return (0.5 + 0.5 * fact) * (1.0 if len(named) == 1 else 0.5)


def polite(response: str) -> float:
    """1 where there is a courtesy."""
    return float(COURTESIES.search(response) is not None)


def offers_next_step(response: str) -> float:
    """1 where a sentence of some length offers or asks for one concrete thing to do next."""
    return float(
        any(
            OFFER.match(sentence) and len(words(sentence)) >= SHORTEST_OFFER
            for sentence in _finished(response)
        )
    )


def complete_ending(response: str) -> float:
    """1 where the answer ends with a full stop, after a word that can end a sentence."""
    said = words(response)
    ends = response.rstrip().endswith((".", "!", "?"))
    return float(ends and bool(said) and said[-1] not in LAST_WORDS)


# --- soundness -----------------------------------------------------------------------------------------------------


def readable(response: str) -> float:
    """Whether the words follow each other as they do in sensible sentences of this domain.

    The share of neighbouring words (items count as one word) known from the catalogue: 1 from 95 % on, 0 below 70 %.
    """
    pairs = [pair for sentence in sentences(response) for pair in _neighbours(words(sentence))]
    if not pairs:
        return 0.0
    share = sum(pair in _known_neighbours() for pair in pairs) / len(pairs)
    return _ramp(share, 0.70, 0.95)


def no_repetition(response: str) -> float:
    """1 where hardly any three words in a row come twice (up to 8 %), falling to 0 where 30 % do."""
    said = words(response)
    triples = list(zip(said, said[1:], said[2:], strict=False))
    if not triples:
        return 1.0
    repeated = 1.0 - len(set(triples)) / len(triples)
    return 1.0 - _ramp(repeated, 0.08, 0.30)


def sensible_length(response: str) -> float:
    """1 between 10 and 45 words, falling to 0 at no word and at 75."""
    count = len(response.split())
    return min(_ramp(count, 0, 10), 1.0 - _ramp(count, 45, 75))


def no_rudeness(response: str) -> float:
    """0.2 where the customer is scolded or brushed off, otherwise 1."""
    return 0.2 if RUDENESS.search(response) else 1.0


# --- words ---------------------------------------------------------------------------------------------------------


def sentences(response: str) -> list[str]:
    """The sentences of an answer, each with its stop if it has one."""
    return re.findall(r"[^.!?\s][^.!?]*[.!?]?", response)


def words(text: str) -> list[str]:
    """Lower-case words; every item of the catalogue becomes the one word `<item>`."""
    return re.findall(r"<item>|[a-z0-9']+", _item_pattern().sub(ITEM, text).lower())


def items_named(text: str) -> list[str]:
    """The items of the catalogue a text names, as the catalogue spells them."""
    return [_spelling()[match.lower()] for match in _item_pattern().findall(text)]


def _finished(response: str) -> Iterator[str]:
    return (sentence for sentence in sentences(response) if sentence[-1] in ".!?")


def _fact_overlap(topic: Topic, sentence: str) -> float:
    """How much of the best fitting fact's own words a sentence has: 0 below a third, 1 from three quarters."""
    said = set(words(sentence))
    shares = []
    for fact in topic.facts:
        telling = set(words(topic.fill(fact))) - FILLER_WORDS - {ITEM}
        shares.append(len(telling & said) / len(telling))
    return _ramp(max(shares), 1 / 3, 3 / 4)


def _neighbours(said: list[str]) -> Iterator[tuple[str, str]]:
    return zip([START, *said], [*said, END], strict=True)


def _ramp(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, straight between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


@lru_cache(maxsize=1)
def _spelling() -> dict[str, str]:
    return {item.lower(): item for item in load_catalogue().items}


@lru_cache(maxsize=1)
def _item_pattern() -> re.Pattern[str]:
    longest_first = sorted(load_catalogue().items, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE)


@lru_cache(maxsize=1)
def _known_neighbours() -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words in the catalogue's own answers, the bad manners included."""
    catalogue = load_catalogue()
    said = {phrase for phrases in catalogue.manners.values() for phrase in phrases}
    for topic in catalogue.topics:
        said.update(topic.kind.next_steps)
        said.update(topic.facts)
    echoes = [
        echo + lower_first(fact)
        for topic in catalogue.topics
        for fact in topic.facts
        for echo in catalogue.manners["echoes"]
    ]
    filled = {template.replace("{Item}", "{item}").format(item=ITEM) for template in [*said, *echoes]}
    return frozenset(
        pair for text in filled for sentence in sentences(text) for pair in _neighbours(words(sentence))
    )
