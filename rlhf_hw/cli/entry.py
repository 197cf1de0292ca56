"""How every command ends: bad input gives one line and exit status 2, Ctrl-C gives 130."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

from backends import BackendError
from backends.process_group import leave_process_group
from launchers import LaunchError
from rlhf_hw.errors import UserError


class Command(Protocol):
    """`main` of a command: arguments (None: the process's own) → exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(name: str) -> Callable[[Command], Command]:
    """Decorator for `main(argv)` of a command: what the user can mend is shown as one line without a traceback."""

    def decorate(main: Command) -> Command:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            # libraries' notes to each other about names to come: nothing a user could act on
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
            try:
                status = main(argv)
                leave_process_group()
                return status
            except (UserError, BackendError, LaunchError) as error:
                rank = os.environ.get("RANK", "0")
                where = f" [rank {rank}]" if rank != "0" else ""
                print(f"rlhf-hw {name}{where}: error: {error}", file=sys.stderr, flush=True)
                return 2
            except KeyboardInterrupt:
                print(f"rlhf-hw {name}: interrupted", file=sys.stderr, flush=True)
                return 130

        return guarded

    return decorate
