"""Ctrl-C in tests that may run in the background."""

import signal


def listen_to_interrupts() -> None:
    """For `preexec_fn`: a shell's background jobs ignore SIGINT, and so do all processes below them, these tests' too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
