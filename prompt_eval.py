"""A baseline and a fine-tuned model, side by side: the same as `rlhf-hw compare`. See `--help`."""

import sys

from rlhf_hw.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
