"""Keeping secrets out of everything a run writes: commands, configurations, texts and log records.

A secret is known by the *name* it is given under (`--hf_access_token`, `WANDB_API_KEY`), and from then on by its
*value*, wherever that value turns up. What merely looks like a credential is taken out of texts as well. What is secret
on a command line the launchers decide, which print commands too; here it is kept out of the logs.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from launchers.secret_arguments import REDACTED, is_secret_name
from launchers.secret_values import SecretVault, redact_mapping, redact_text
from launchers.shown_commands import redact_argv, shell_command

__all__ = [
    "REDACTED",
    "SecretFilter",
    "SecretVault",
    "install_log_filter",
    "is_secret_name",
    "redact_argv",
    "redact_mapping",
    "redact_text",
    "shell_command",
]


class SecretFilter(logging.Filter):
    """Scrubs a log record in place: message, arguments, traceback and stack. Never drops a record."""

    def __init__(self, vault: SecretVault) -> None:
        super().__init__()
        self.vault = vault

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit their format: logging reports it later, with both
            record.msg, record.args = self.vault.scrub(str(record.msg)), self._scrub_arguments(record.args)
        else:
            clean = self.vault.scrub(message)
            if clean != message:
                record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            clean = self.vault.scrub(text)
            if (
                clean != text
            ):  # handlers that draw tracebacks themselves would read exc_info: leave them the text
                record.exc_text, record.exc_info = clean, None
        if record.exc_text:
            record.exc_text = self.vault.scrub(record.exc_text)
        if record.stack_info:
            record.stack_info = self.vault.scrub(record.stack_info)
        return True

    def _scrub_arguments(self, arguments: Any) -> Any:
        if isinstance(arguments, Mapping):
            return {name: self.vault.scrub(str(value)) for name, value in arguments.items()}
        return tuple(self.vault.scrub(str(value)) for value in arguments or ())


def install_log_filter(vault: SecretVault) -> Callable[[], None]:
    """Scrub every log record of this process, and the traceback of an uncaught exception.

    A filter on a logger misses its children's records, and one on a handler misses handlers that come later;
    so the filter sits where records are made. Returns a function that takes it away again.
    """
    previous_factory, previous_hook = logging.getLogRecordFactory(), sys.excepthook
    secret_filter = SecretFilter(vault)

    def make_scrubbed_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = previous_factory(*args, **kwargs)
        secret_filter.filter(record)
        return record

    def print_scrubbed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        clean = vault.scrub(text)
        if clean == text:
            previous_hook(kind, error, trace)
        else:
            sys.stderr.write(clean)

    def uninstall() -> None:
        if logging.getLogRecordFactory() is make_scrubbed_record:
            logging.setLogRecordFactory(previous_factory)
        if sys.excepthook is print_scrubbed:
            sys.excepthook = previous_hook

    logging.setLogRecordFactory(make_scrubbed_record)
    sys.excepthook = print_scrubbed
    return uninstall
