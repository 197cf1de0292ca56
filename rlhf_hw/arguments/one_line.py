"""argparse with errors as every command here has them: one line, exit status 2."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """For commands whose few flags need no dataclass."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit status 2."""
        sys.stderr.write(f"{self.prog}: error: {' '.join(message.split())}; see --help\n")
        raise SystemExit(2)
