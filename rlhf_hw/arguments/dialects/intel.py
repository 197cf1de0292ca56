"""Intel's neural_chat scripts finetune_clm.py, reward_modeling.py and rl_training.py: our own names and defaults."""

from __future__ import annotations

from typing import Any

#: command → setting → value where the script's default is not ours; the dataclasses themselves hold the scripts' defaults
DEFAULTS: dict[str, dict[str, Any]] = {"sft": {}, "reward": {}, "ppo": {}}
