"""What a launcher cannot do."""

from __future__ import annotations


class LaunchError(Exception):
    """The launch asked for cannot be had; the message names the flag or line, what was found and what to do."""
