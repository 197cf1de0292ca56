"""Win rate of answers against reference answers: the same as `rlhf-hw judge`. See `--help`."""

import sys

from rlhf_hw.cli.judge import main

if __name__ == "__main__":
    sys.exit(main())
