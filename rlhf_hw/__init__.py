"""rlhf_hw: supervised fine-tuning, reward modelling and PPO on NVIDIA GPUs, Intel Gaudi HPUs and CPUs."""

__version__ = "0.1.0"
