"""What the program is asked on its command line, and what it refuses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import growth
import memory
from kept_runs import read_rows
from sides import PEERS, ROOT
from table import ROWS
from workload import Size, changed


def parse(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with `size` and `plan` made of the words for them, and `old` rows to keep; ends with status 2 where they cannot be met."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        choices=[*(row.name for row in ROWS), memory.NAME],
        help="measure these rows alone",
    )
    parser.add_argument(
        "--growth",
        nargs="*",
        metavar="AXIS[=NUMBER,…]",
        help="measure how the cost grows instead, along "
        + ", ".join(f"{name}={','.join(map(str, values))}" for name, values in growth.AXES.items())
        + "; or along those named, with other numbers if given",
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=list(growth.OURS),
        default=list(growth.OURS),
        help="with --growth: of which stages the cost is measured",
    )
    parser.add_argument(
        "--turns",
        type=int,
        default=3,
        help="counted turns of each side (with --growth of ours; TRL has one)",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        default=[],
        metavar="NAME=NUMBER",
        help="another size of models and batches, for a quick look: fields of Size in workload.py",
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="models, data and logs")
    arguments = parser.parse_args(argv)
    if arguments.turns < 1:
        parser.error(f"--turns {arguments.turns}: must be at least 1")
    if arguments.only is not None and arguments.growth is not None:
        parser.error("--only names rows of the comparison, which --growth does not make; leave one out")
    arguments.plan = None
    try:
        arguments.old = read_rows(arguments.results / "speed.json") if arguments.only is not None else []
    except ValueError as error:
        parser.error(str(error))
    try:
        if arguments.growth is None:
            arguments.size = changed(Size(), arguments.size)
        else:
            arguments.size = changed(growth.BASE, arguments.size)
            arguments.plan = growth.plan(arguments.growth, arguments.size)
    except ValueError as error:
        parser.error(f"--{'size' if arguments.growth is None else 'growth or --size'}: {error}")
    if arguments.growth is None and not all((PEERS / peer).is_dir() for peer in ("trl-1.12", "classic")):
        parser.error("the peers are not installed; run make bench")
    for flag, directory in (("--results", arguments.results), ("--work", arguments.work)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=directory):
                pass
        except OSError as error:  # now, and not when the first numbers are to be written
            parser.error(
                f"{flag} {directory}: cannot be written to: {error.strerror}; name another directory"
            )
    return arguments
