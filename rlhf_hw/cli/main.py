"""`rlhf-hw COMMAND …`: the commands, each a module of its own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import rlhf_hw

COMMANDS = {
    "train": "the three steps in one command: SFT, reward model, PPO",
    "demo": "base model to aligned model on the embedded example, in a few minutes",
    "sft": "supervised fine-tuning",
    "reward": "reward modelling from pairs of answers",
    "ppo": "reinforcement learning with PPO against a reward model or function",
    "merge": "merge an adapter into its base model",
    "chat": "talk to a model on the terminal",
    "compare": "a baseline and a fine-tuned model, side by side",
    "infer": "answer a file of instructions with a model",
    "judge": "win rate of answers against reference answers, by a chat model or a reward model",
    "score": "what a reward model gives to good and bad answers, and how often it is right",
    "perplexity": "how well a language model expects the answers of a data set",
    "estimate": "the memory that a stage will take, before anything loads",
    "data": "look at a data set as the stages see it",
    "report": "draw a run's report again, or compare runs",
    "launch": "start a stage on all of this machine's accelerators, or on several machines",
    "doctor": "what this machine has, what is installed, and what fits together",
}


def usage() -> str:
    """The overview that `rlhf-hw --help` prints."""
    lines = [f"rlhf-hw {rlhf_hw.__version__}: SFT, reward modelling and PPO on the hardware you have", ""]
    lines += ["usage: rlhf-hw COMMAND [flags]     rlhf-hw COMMAND --help for its flags", ""]
    lines += [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(rlhf_hw.__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"rlhf-hw: error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"rlhf_hw.cli.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
