"""Reward modelling: the same as `rlhf-hw reward`. See `--help`."""

import sys

from rlhf_hw.cli.reward import main

if __name__ == "__main__":
    sys.exit(main())
