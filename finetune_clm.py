"""Supervised fine-tuning: the same as `rlhf-hw sft`. See `--help`."""

import sys

from rlhf_hw.cli.sft import main

if __name__ == "__main__":
    sys.exit(main())
