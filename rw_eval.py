"""A reward model's scores of good and bad answers: the same as `rlhf-hw score`. See `--help`."""

import sys

from rlhf_hw.cli.score import main

if __name__ == "__main__":
    sys.exit(main())
