"""Reinforcement learning with PPO: the same as `rlhf-hw ppo`. See `--help`."""

import sys

from rlhf_hw.cli.ppo import main

if __name__ == "__main__":
    sys.exit(main())
