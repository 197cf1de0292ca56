"""How the tests run each command of the seeds: what is changed so that a test can wait for it, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import seed_000
import seed_001
import seed_003
import seed_004
from commands import SeedCommand


@dataclass(frozen=True)
class Trial:
    """One command. `writes`: what it writes, seen from `directory`, where it is run. `paths`: beginnings of paths, and what
    stands for them here. `flags`: those that get another value, or are added. `typed`: what the user types.
    `launched_on`: the devices on which the command's own launcher starts it, with `processes`; one process on others."""

    command: SeedCommand
    writes: str = ""
    directory: str = "."
    paths: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    typed: str = ""
    launched_on: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The script's arguments as the tests give them."""
        words = [self._placed(word) for word in self.command.words()]
        for flag, value in self.flags.items():
            if flag in words:
                words[words.index(flag) + 1] = value
            else:
                words += [flag, value]
        return words

    def _placed(self, word: str) -> str:
        for path, here in self.paths.items():
            if word.startswith(path):
                return here + word.removeprefix(path)
        return word


SHORT = {"--max_answer_seq_len": "12"}
ASKED = "How many are 2 and 2?\n/quit\n"
ROOT_000 = {"/root/autodl-tmp/rlhf/final/actor": "rlhf/final", "/root/autodl-tmp/": ""}
ROOT_003 = {
    "/alpacafarm/": "",
    # update 2 of 3: two epochs of two optimizer steps each
    "/output/dir/for/saving/lora/weights/checkpoint-100/pytorch_model.bin": "weights/checkpoint-8",
    "/output/dir/for/saving/lora/weights": "weights",
    "/path/for/eval/": "eval/",
    "/path/to/downloaded/": "downloaded/",
    "/output/simulated/preference/": "preference/",
}
STEP_1, STEP_2, STEP_3 = (
    f"training/step{number}_{name}_finetuning"
    for number, name in ((1, "supervised"), (2, "reward_model"), (3, "rlhf"))
)
PIPELINE = {
    "--sft.num_train_epochs": "1",
    "--rm.num_train_epochs": "1",
    "--ppo.steps": "8",
    "--ppo.batch_size": "4",
    "--ppo.mini_batch_size": "4",
    "--ppo.gradient_accumulation_steps": "1",
    "--ppo.output_max_length": "12",
}

#: A name → the commands that are run one after the other in one place.
CHAINS: dict[str, list[Trial]] = {
    "000": [
        Trial(seed_000.SFT, "rlhf/actor", paths=ROOT_000),
        Trial(seed_000.CHAT_SFT, paths=ROOT_000, flags={"--max_new_tokens": "8"}, typed=ASKED),
        Trial(seed_000.REWARD, "rlhf/critic", paths=ROOT_000),
        Trial(seed_000.PPO, "rlhf/final", paths=ROOT_000, flags=SHORT, launched_on=("cpu",)),
        Trial(seed_000.CHAT_RLHF, paths=ROOT_000, flags={"--max_new_tokens": "8"}, typed=ASKED),
    ],
    "001": [
        Trial(seed_001.SFT, "output/actor-models/1.3b"),
        Trial(seed_001.REWARD, "output/reward-models/350m"),
        Trial(seed_001.PPO, "output/step3-models/1.3b", flags=SHORT),
        Trial(
            seed_001.CHAT,
            paths={"output/step3-models/actor": "output/step3-models/1.3b"},
            flags={"--max_new_tokens": "8", "--no_repeat_ngram_size": "5"},
            typed=ASKED,
        ),
    ],
    "003": [
        Trial(
            seed_003.PPO,
            "weights",
            paths=ROOT_003,
            flags={
                "--rollout_batch_size": "16",
                "--step_batch_size": "8",
                "--rollout_per_device_batch_size": "2",
                "--step_per_device_batch_size": "2",
                "--total_epochs": "6",
                "--eval_steps": "3",
                "--save_steps": "2",
                "--save_steps_extra": "1",
                "--response_len": "12",
            },
        ),
        Trial(seed_003.INFERENCE, "eval/output.json", paths=ROOT_003, flags={"--max_new_tokens": "8"}),
        Trial(seed_003.EVALUATION, "preference/output.json", paths=ROOT_003),
    ],
    "004": [
        Trial(seed_004.SFT, "output", STEP_1, launched_on=("cpu",)),
        Trial(seed_004.PROMPTS, "", STEP_1, flags={"--max_new_tokens": "8"}),
        Trial(seed_004.REWARD, "output", STEP_2),
        Trial(seed_004.SCORES, "", STEP_2),
        Trial(seed_004.PPO, "output", STEP_3, flags=SHORT),
        Trial(
            seed_004.CHAT,
            paths={f"{STEP_3}/output/actor": f"{STEP_3}/output"},
            flags={"--max_new_tokens": "8"},
            typed=ASKED,
        ),
    ],
    "004 pipeline": [
        Trial(seed_004.TRAIN, "output", flags=PIPELINE),
        Trial(seed_004.TRAIN_13B, "output", flags=PIPELINE),
    ],
}
