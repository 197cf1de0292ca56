"""`rlhf-hw report`: draw a run's plots and write its report again, or lay several runs over each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlhf_hw.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Write the report and say where it is. Raises UserError where a directory holds no run."""
    parser = argparse.ArgumentParser(
        prog="rlhf-hw report",
        description="Write report.html, report.md and the plots of a run directory again from what it logged, "
        "while the run goes on or after it.",
    )
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="a run's --output_dir")
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="lay these runs (and DIR, if given) over each other: comparison.html in the first of them",
    )
    arguments = parser.parse_args(argv)
    if arguments.directory is None and not arguments.compare:
        raise UserError("report: no run directory given; name one, or two or more after --compare")

    # Here and not above: matplotlib takes a second to load, and `--help` needs none of it.
    from rlhf_hw.report.report import write_comparison, write_report

    if arguments.compare:
        first = [arguments.directory] if arguments.directory else []
        print(write_comparison([*first, *arguments.compare]))
    else:
        print(write_report(arguments.directory))
    return 0
