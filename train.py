"""From base model to aligned model: the same as `rlhf-hw train`. See `--help`."""

import sys

from rlhf_hw.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
