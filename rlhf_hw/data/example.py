"""The canonical record that every data set becomes, and its flat form inside a `datasets.Dataset`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datasets import Features, Value

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)

Purpose = Literal["sft", "reward", "ppo"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """One prompt with the answers known for it.

    `prompt`: what the policy sees. A `str` is used as it is (no template); a tuple of messages is rendered.
    `chosen`: the answer to learn or to prefer; None where a set has prompts only.
    `rejected`: the answer not to prefer, where there is one.
    `source`: the name of the format the row came in.
    `margin`: by how much a reward model should score `chosen` above `rejected`, where the set says so.
    `learn_all_turns`: in SFT, the assistant's earlier turns inside `prompt` are targets too.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | None
    rejected: str | None = None
    source: str = ""
    learn_all_turns: bool = False
    margin: float | None = None


# An Example as columns: Arrow has no sum types, so a chat prompt is stored as a JSON list of {role, content}.
CANONICAL_FEATURES = Features(
    {
        "prompt": Value("string"),
        "prompt_is_chat": Value("bool"),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "source": Value("string"),
        "learn_all_turns": Value("bool"),
        "margin": Value("float32"),
    }
)


def to_row(example: Example) -> dict[str, Any]:
    """The columns of `CANONICAL_FEATURES` for one example; `from_row` is its inverse."""
    if isinstance(example.prompt, str):
        prompt = example.prompt
    else:
        turns = [{"role": message.role, "content": message.content} for message in example.prompt]
        prompt = json.dumps(turns, ensure_ascii=False)
    return {
        "prompt": prompt,
        "prompt_is_chat": not isinstance(example.prompt, str),
        "chosen": example.chosen,
        "rejected": example.rejected,
        "source": example.source,
        "learn_all_turns": example.learn_all_turns,
        "margin": example.margin,
    }


def from_row(row: Mapping[str, Any]) -> Example:
    """The example stored in one row of a canonical data set."""
    prompt: str | tuple[Message, ...] = row["prompt"]
    if row["prompt_is_chat"]:
        prompt = tuple(Message(**message) for message in json.loads(row["prompt"]))
    return Example(
        prompt, row["chosen"], row["rejected"], row["source"], row["learn_all_turns"], row["margin"]
    )
