"""Where what DeepSpeed compiles when first used lies, and the lock that a killed run leaves there.

torch's cpp_extension keeps one folder for all of a user's environments: those with different versions of torch compile
the same extension over and over. And its lock is a plain file, for which a later process waits forever, without a word,
where the one that made it was killed. Retired by a torch that tells environments and dead owners apart.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import torch

from rlhf_hw.errors import UserError

_FOLDER = "TORCH_EXTENSIONS_DIR"
#: seconds after which nobody is taken to be compiling still; it takes about one minute
_ABANDONED = 600


def prepare_extensions() -> None:
    """Let this environment compile into a folder of its own, unless the user named one.

    Raises:
        UserError: a lock there is older than ten minutes.
    """
    if _FOLDER not in os.environ:
        from torch.utils.cpp_extension import get_default_build_root

        environment = hashlib.sha256(f"{sys.prefix} {sys.version}".encode()).hexdigest()[:8]
        os.environ[_FOLDER] = str(Path(get_default_build_root(), f"torch-{torch.__version__}-{environment}"))
    for lock in sorted(Path(os.environ[_FOLDER]).glob("*/lock")):
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:  # let go meanwhile
            continue
        if age > _ABANDONED:
            raise UserError(
                f"--deepspeed: {lock} is {age / 60:.0f} minutes old, most likely left by a run that was killed while "
                "DeepSpeed compiled, and this one would wait for it forever; where no other run is compiling, remove it"
            )
