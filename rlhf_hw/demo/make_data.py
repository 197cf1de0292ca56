"""Write the demo's data set: `python -m rlhf_hw.demo.make_data` rewrites the three files in the package.

- `demonstrations.jsonl` (prompt, completion): what people happened to write, good and bad mixed, for SFT.
- `train.jsonl`, `heldout.jsonl` (prompt, chosen, rejected): preferences, for the reward model and PPO.

The same seed writes the same bytes. No prompt appears in two of the files, no held-out answer appears in training,
and some topics (an item with a kind of question) are kept for the held-out file alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rlhf_hw.demo.answers import (
    Writer,
    another_topic,
    curt,
    cut_off,
    good_answer,
    no_help,
    off_topic,
    rambling,
    rude,
)
from rlhf_hw.demo.catalogue import Topic, load_catalogue

SEED = 20261121
DEMONSTRATIONS = 3000
TRAIN_PAIRS = 1800
HELDOUT_PAIRS = 200
UNSEEN_TOPICS = 60
GOOD_SHARE = 0.3
# How often each fault is drawn. People who write demonstrations are seldom off topic; pairs of answers need many such
# cases, because the reward model finds nothing as hard to see.
DEMONSTRATION_FAULTS: dict[Writer, int] = {
    curt: 2,
    rude: 2,
    off_topic: 1,
    rambling: 2,
    no_help: 2,
    cut_off: 2,
}
PAIR_FAULTS: dict[Writer, int] = {curt: 2, rude: 2, off_topic: 3, rambling: 3, no_help: 3, cut_off: 3}

DATA_DIRECTORY = Path(__file__).parent

Row = dict[str, str]


@dataclass(frozen=True)
class DemoData:
    """The rows of the three files."""

    demonstrations: list[Row]
    train: list[Row]
    heldout: list[Row]

    def files(self) -> dict[str, str]:
        """File name to file content."""
        return {
            "demonstrations.jsonl": _jsonl(self.demonstrations),
            "train.jsonl": _jsonl(self.train),
            "heldout.jsonl": _jsonl(self.heldout),
        }


def make_data(seed: int = SEED) -> DemoData:
    """All three files, drawn from the catalogue."""
    rng = Random(seed)
    topics = list(load_catalogue().topics)
    rng.shuffle(topics)
    unseen, common = topics[:UNSEEN_TOPICS], topics[UNSEEN_TOPICS:]
    used: set[str] = set()
    heldout_topics = unseen + rng.sample(common, HELDOUT_PAIRS - UNSEEN_TOPICS)
    heldout = [_pair(topic, rng, used) for topic in heldout_topics]
    train = [_pair(topic, rng, used) for topic in _rounds(common, TRAIN_PAIRS, rng)]
    demonstrations = [_demonstration(topic, rng, used) for topic in _rounds(common, DEMONSTRATIONS, rng)]
    return DemoData(demonstrations, train, heldout)


def make_prompt(topic: Topic, rng: Random) -> str:
    """A customer's question, plain or with a greeting, a remark and thanks around it."""
    manners = load_catalogue().manners
    before = rng.choice(manners["greetings"]) if rng.random() < 0.4 else ""
    before += rng.choice(manners["remarks"]) if rng.random() < 0.15 else ""
    after = rng.choice(manners["thanks"]) if rng.random() < 0.15 else ""
    return f"Customer: {before}{topic.fill(rng.choice(topic.kind.questions))}{after}\nAssistant:"


def _pair(topic: Topic, rng: Random, used: set[str]) -> Row:
    prompt = _unused(lambda: make_prompt(topic, rng), used)
    style = rng.getrandbits(32)
    while (chosen := _good_answer(topic, style)) in used:
        style = rng.getrandbits(32)
    used |= {prompt, chosen}
    fault = _draw_fault(PAIR_FAULTS, rng)
    if fault is off_topic:  # in the same words: the topic is then all that tells the two answers apart
        rejected = _unused(lambda: _good_answer(another_topic(topic, rng), style), used)
    else:
        rejected = " " + fault(topic, rng)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _demonstration(topic: Topic, rng: Random, used: set[str]) -> Row:
    prompt = _unused(lambda: make_prompt(topic, rng), used)
    used.add(prompt)
    write = good_answer if rng.random() < GOOD_SHARE else _draw_fault(DEMONSTRATION_FAULTS, rng)
    return {"prompt": prompt, "completion": _unused(lambda: " " + write(topic, rng), used)}


def _good_answer(topic: Topic, style: int) -> str:
    """The same style wraps any topic in the same opener and closing."""
    return " " + good_answer(topic, Random(style))


def _draw_fault(faults: dict[Writer, int], rng: Random) -> Writer:
    return rng.choices(list(faults), weights=list(faults.values()))[0]


def _unused(draw: Callable[[], str], used: set[str]) -> str:
    """Draw until the text is not among the used ones."""
    while (text := draw()) in used:
        pass
    return text


def _rounds(topics: list[Topic], count: int, rng: Random) -> Iterator[Topic]:
    """`count` topics: every topic once in a new order, and again until there are enough."""
    while count > 0:
        yield from rng.sample(topics, min(count, len(topics)))
        count -= len(topics)


def _jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Rewrite the shipped files."""
    for name, content in make_data().files().items():
        (DATA_DIRECTORY / name).write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
