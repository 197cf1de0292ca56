"""Merging an adapter into its base: the same as `rlhf-hw merge`. See `--help`."""

import sys

from rlhf_hw.cli.merge import main

if __name__ == "__main__":
    sys.exit(main())
