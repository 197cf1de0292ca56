"""Answering a file of instructions: the same as `rlhf-hw infer`. See `--help`."""

import sys

from rlhf_hw.cli.infer import main

if __name__ == "__main__":
    sys.exit(main())
