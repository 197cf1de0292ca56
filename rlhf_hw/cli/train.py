"""`train.py`: all stages in one command. This version runs the embedded example; the stages run one by one too."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlhf_hw.cli import demo
from rlhf_hw.cli.entry import command
from rlhf_hw.errors import UserError


@command("train")
def main(argv: Sequence[str] | None = None) -> int:
    """`--demo` and the demo's own flags."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--demo" in words:
        words.remove("--demo")
        return demo.main(words)
    if words and words[0] in ("-h", "--help"):
        print("usage: train.py --demo [flags of the demo]\n\n" + demo.build_parser().format_help())
        return 0
    raise UserError("train.py: give --demo; or run the stages with rlhf-hw sft, reward and ppo")


if __name__ == "__main__":
    sys.exit(main())
