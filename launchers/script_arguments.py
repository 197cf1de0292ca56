"""What a script is told that its launcher must know too."""

from __future__ import annotations

from collections.abc import Sequence

TRUE_WORDS = ("true", "t", "yes", "y", "1", "on")
FALSE_WORDS = ("false", "f", "no", "n", "0", "off")


def device_of(arguments: Sequence[str]) -> str | None:
    """The device that `--device` names ("habana" is its older name for hpu), or `--use_habana`; None without either."""
    device = value_of(arguments, "--device")
    if device is not None:
        return "hpu" if device == "habana" else device
    return "hpu" if is_set(arguments, "--use_habana") else None


def uses_deepspeed(arguments: Sequence[str]) -> bool:
    """Whether the script is to train with DeepSpeed: the bare switch, or a configuration."""
    return is_set(arguments, "--deepspeed")


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, written `--flag value` or `--flag=value`."""
    value = None
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def is_set(arguments: Sequence[str], flag: str) -> bool:
    """Whether a yes-or-no flag is on: `--flag`, `--flag True` or `--flag=True`."""
    value = value_of(arguments, flag)
    return value is not None and value.lower() not in FALSE_WORDS
