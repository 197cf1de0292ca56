"""`python -m rlhf_hw` is `rlhf-hw`."""

import sys

from rlhf_hw.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
