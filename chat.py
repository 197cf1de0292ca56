"""Talking to a model on the terminal: the same as `rlhf-hw chat`. See `--help`."""

import sys

from rlhf_hw.cli.chat import main

if __name__ == "__main__":
    sys.exit(main())
