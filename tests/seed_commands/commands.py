"""How the seeds' commands are written down: the command as its page has it, and what every word of it must mean here."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Our script for each kind of command.
DOORS = {
    "sft": "finetune_clm.py",
    "reward": "reward_modeling.py",
    "ppo": "rl_training.py",
    "merge": "merge_peft_adapter.py",
    "train": "train.py",
    "chat": "chat.py",
    "infer": "run_inference.py",
    "judge": "run_eval.py",
    "compare": "prompt_eval.py",
    "score": "rw_eval.py",
}
TRAINING = ("sft", "reward", "ppo")


@dataclass(frozen=True)
class SeedCommand:
    """One command. `stage`: the command of ours. `dialect`: as which it must be read. `settings`: "group.field" → value
    that it must come to; `lines`: parts of lines that the run must open with."""

    name: str
    stage: str
    dialect: str | None
    text: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The script's arguments, as the shell hands them over."""
        words = self._all_words()
        return words[self._script(words) + 1 :]

    def launcher(self) -> list[str]:
        """The words in front of the script. Seed 000's bootstrap script hands its own to DeepSpeed's launcher."""
        words = self._all_words()
        words = words[: self._script(words)]
        return ["deepspeed", *words] if words[0].startswith("-") else words

    def their_script(self) -> str:
        """The name of the script that the page runs, with its folder where that alone tells it apart."""
        words = self._all_words()
        parts = words[self._script(words)].split("/")
        return "/".join(parts[-2:] if parts[-1] == "main.py" else parts[-1:])

    def _all_words(self) -> list[str]:
        text = self.text.replace("\\\n", " ")
        for name, value in self.variables.items():
            text = text.replace("${" + name + "}", value).replace(f"${name}", value)
        return shlex.split(text.split("&>")[0].split(" > ")[0])

    @staticmethod
    def _script(words: list[str]) -> int:
        return max(
            i for i, word in enumerate(words) if word.endswith(".py")
        )  # gaudi_spawn.py stands before it
