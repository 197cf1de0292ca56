"""What the demo's assistant knows: four counters, their items, the questions asked there and the right answers.

`catalogue.json` holds every sentence; this module gives it names. A *topic* is one item and one kind of question
about it ("basil", "watering"). Facts belong to a group of items ("herbs"), so that a model can answer about an
item and a kind of question it has never seen together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources


@dataclass(frozen=True)
class Kind:
    """One kind of question at a counter."""

    name: str
    questions: tuple[str, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Items of which the same facts are true; `plural` is their grammatical number."""

    name: str
    items: tuple[str, ...]
    plural: bool
    subject: str
    facts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Topic:
    """One item and one kind of question about it."""

    domain: str
    group: Group
    kind: Kind
    item: str

    @property
    def name(self) -> str:
        return f"{self.item}/{self.kind.name}"

    @property
    def facts(self) -> tuple[str, ...]:
        """The fact sentences that answer this topic, still with their slots."""
        return self.group.facts[self.kind.name]

    def fill(self, template: str) -> str:
        """Put the item into the slots of a sentence, in the right grammatical number.

        A slot with a capital ({Item}, {Do}, {Are}) starts a sentence.
        """
        do, are = ("do", "are") if self.group.plural else ("does", "is")
        subject = self.group.subject.format(item=self.item)
        return template.format(
            item=self.item,
            Item=self.item[0].upper() + self.item[1:],
            subject=subject,
            do=do,
            Do=do.capitalize(),
            are=are,
            Are=are.capitalize(),
        )


@dataclass(frozen=True)
class Catalogue:
    """Every topic, and the manners (good and bad) in which an answer can be wrapped."""

    topics: tuple[Topic, ...]
    manners: Mapping[str, tuple[str, ...]]

    @property
    def items(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(topic.item for topic in self.topics))


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """Read `catalogue.json` from the package."""
    text = resources.files("rlhf_hw.demo").joinpath("catalogue.json").read_text(encoding="utf-8")
    document = json.loads(text)
    manners = {name: tuple(phrases) for name, phrases in document["manners"].items()}
    return Catalogue(tuple(_topics(document["domains"])), manners)


def _topics(domains: dict) -> Iterator[Topic]:
    for domain_name, domain in domains.items():
        kinds = [
            Kind(name, tuple(entry["questions"]), tuple(entry["next_steps"]))
            for name, entry in domain["kinds"].items()
        ]
        for group_name, entry in domain["groups"].items():
            facts = {kind: tuple(sentences) for kind, sentences in entry["facts"].items()}
            group = Group(group_name, tuple(entry["items"]), entry["plural"], entry["subject"], facts)
            for item in group.items:
                for kind in kinds:
                    yield Topic(domain_name, group, kind, item)


@lru_cache(maxsize=1)
def _topic_of_question() -> dict[str, Topic]:
    """Every question that can be asked, as text, with the topic it is about."""
    return {
        topic.fill(question): topic for topic in load_catalogue().topics for question in topic.kind.questions
    }


@lru_cache(maxsize=4096)
def topic_of_prompt(prompt: str) -> Topic:
    """The topic a prompt of the demo asks about; the longest question found in it counts.

    Raises:
        ValueError: the prompt holds no question of the catalogue.
    """
    questions = _topic_of_question()
    found = max((question for question in questions if question in prompt), key=len, default=None)
    if found is None:
        raise ValueError(f"not a prompt of the demo's catalogue: {prompt!r}")
    return questions[found]
