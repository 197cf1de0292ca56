"""An estimate as a table, with rich where it is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rlhf_hw.arguments.estimate import Asked
from rlhf_hw.estimate.advice import HEADROOM, Step, micro_batch, usable
from rlhf_hw.estimate.stages import Estimate

_GIB = 2**30


def rows(found: Estimate) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): what memory is for, and how much of it in each phase, in GiB."""
    terms = list(dict.fromkeys(term for phase in found.phases for term in phase.terms))
    heads = ["GiB", *(phase.name for phase in found.phases)]
    body = [
        [term, *(_gib(phase.terms[term]) if term in phase.terms else "" for phase in found.phases)]
        for term in terms
    ]
    return heads, [*body, ["all", *(_gib(phase.total) for phase in found.phases)]]


def lines(
    asked: Asked, found: Estimate, largest: tuple[int, Estimate] | None, steps: Sequence[Step] | None
) -> list[str]:
    """What the table means: the peak, whether it fits, what would."""
    conditions, limit = found.conditions, usable(found.conditions)
    weights = ", ".join(
        f"{role} {w.all_parameters / 1e9:.3g}B ({w.parameters / 1e6:,.4g}M trained)"
        for role, w in found.roles.items()
    )
    precision = {"no": "fp32"}.get(conditions.autocast, f"{conditions.autocast} autocast")
    of = f" of each of {conditions.processes} processes" if conditions.processes > 1 else ""
    told = [
        weights,
        f"{precision}, {conditions.attention} attention, micro-batch {micro_batch(asked.run)}, every row at its longest",
        f"peak{of}: {_gib(found.peak)} GiB in the phase {found.worst.name!r}; {conditions.card} has "
        f"{conditions.memory:.1f} GiB, of which {HEADROOM:.0%} are left to kernels and fragmentation: "
        + ("it fits" if found.peak <= limit else "it does not fit"),
    ]
    if asked.advice:
        told.append(
            f"largest micro-batch that fits: {largest[0]} ({_gib(largest[1].peak)} GiB)"
            if largest
            else "no micro-batch fits with these flags"
        )
    if steps is not None:
        told.append(
            "what to change, each on top of the last:" if steps else "no change of flags was found that helps"
        )
        told += [f"  {step.flags}: {_gib(step.peak)} GiB{', fits' if step.fits else ''}" for step in steps]
        if steps and not steps[-1].fits:
            told.append(
                "  and still it does not fit: take a larger card, more processes, shorter rows or a smaller model"
            )
    return told


def print_tables(found: Estimate, told: Sequence[str]) -> None:
    """Print both: with rich on a terminal, as aligned text in a pipe or where rich is missing."""
    heads, body = rows(found)
    if sys.stdout.isatty() and find_spec("rich") is not None:
        _print_with_rich(heads, body, told)
        return
    widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(heads))]
    for row in [heads, *body]:
        cells = [
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print("", *told, sep="\n")


def _print_with_rich(heads: Sequence[str], body: Sequence[Sequence[str]], told: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 0, 0, 2), show_footer=True)
    for index, head in enumerate(heads):
        table.add_column(head, body[-1][index], justify="right" if index else "left", footer_style="bold")
    for row in body[:-1]:
        table.add_row(*row)
    console = Console()
    console.print(table, "", sep="\n")
    for line in told:
        console.print(Text(line))


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}" if size >= _GIB / 100 else f"{size / _GIB:.4f}"
