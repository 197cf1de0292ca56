"""The tables of docs/coming-from.md, made from the dialects and from record.json.

`python tests/seed_commands/coming_from.py` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import record
import seed_000
import seed_001
import seed_002
import seed_002_habana
import seed_003
import seed_004
from commands import SeedCommand

from rlhf_hw.arguments.dialects.dialect import Flag
from rlhf_hw.arguments.dialects.recognise import DIALECTS
from rlhf_hw.arguments.translation import shown

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
_PLACE = re.compile(r"<!-- flags: (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)
_RAN = re.compile(r"<!-- ran -->\n.*?<!-- end -->", re.DOTALL)

#: A system → its commands, in the order of its page.
SYSTEMS: dict[str, list[SeedCommand]] = {
    "alpaca-rlhf": seed_000.COMMANDS,
    "DeepSpeed-Chat": seed_001.COMMANDS,
    "neural_chat": [*seed_002.COMMANDS, *seed_002_habana.COMMANDS],
    "AlpacaFarm with LoRA": seed_003.COMMANDS,
    "simple-rlhf": seed_004.COMMANDS,
}
#: Commands that are for one kind of hardware: not run on the other.
ON_ONE_DEVICE = {
    **{command.name: "cpu" for command in seed_002.COMMANDS if command.stage != "merge"},
    **{command.name: "hpu" for command in seed_002_habana.COMMANDS},
}
HEADINGS = {
    "cpu current": "CPU, current stack",
    "cpu gaudi": "CPU, Gaudi stack",
    "hpu current": "emulated HPU, current stack",
    "hpu gaudi": "emulated HPU, Gaudi stack",
}


def columns_of(command: SeedCommand) -> list[str]:
    """Where the tests run a command."""
    device = ON_ONE_DEVICE.get(command.name)
    return [column for column in record.COLUMNS if device is None or column.startswith(device)]


def filled(page: str) -> str:
    """The page with `<!-- ran -->` and every `<!-- flags: DIALECT COMMAND -->` filled in, each up to its `<!-- end -->`."""
    page = _RAN.sub(lambda _: f"<!-- ran -->\n{ran()}<!-- end -->", page)
    return _PLACE.sub(
        lambda place: f"<!-- flags: {place[1]} {place[2]} -->\n{tables(place[1], place[2])}<!-- end -->", page
    )


def ran() -> str:
    """The commands that the tests run: where, how, and what they left."""
    kept = record.read()
    lines = [f"| command | {' | '.join(HEADINGS.values())} | left | changed |"]
    lines.append("|---|" + "---|" * (len(HEADINGS) + 2))
    for system, commands in SYSTEMS.items():
        for command in commands:
            found = kept[command.name]
            cells = [_processes(found.get(column)) for column in record.COLUMNS]
            (left,) = {", ".join(one["left"]) for one in found.values()}
            (changed,) = {", ".join(f"`{flag}`" for flag in one["changed"]) for one in found.values()}
            what = f"{system}, {command.name[4:]}: `{command.their_script()}`"
            lines.append(f"| {what} | {' | '.join(cells)} | {left} | {changed} |")
    return "\n".join([*lines, ""])


def _processes(one: record.Ran | None) -> str:
    if one is None:
        return "–"
    return str(one["processes"]) if one["by"] == "plain" else f"{one['processes']} by {one['by']}"


def tables(dialect: str, command: str) -> str:
    """The flags of one script: those that are the same here, those that are not, and its defaults."""
    known = DIALECTS[dialect]
    flags = known.flags[command]
    same = [name for name, flag in flags.items() if flag.setting == name and not flag.note]
    lines = [f"Called and meaning the same: {', '.join(f'`--{name}`' for name in sorted(same))}.", ""]
    lines += ["| their flag | here |", "|---|---|"]
    lines += [f"| `--{name}` | {_here(name, flag)} |" for name, flag in flags.items() if name not in same]
    defaults = " ".join(f"--{name} {shown(value)}" for name, value in known.defaults[command].items())
    lines += ["", f"Defaults: `{defaults}`" if defaults else "Defaults: those that `--help` shows.", ""]
    return "\n".join(lines)


def _here(name: str, flag: Flag) -> str:
    if flag.idle:
        return f"no effect: {flag.note}"
    if flag.setting is None:
        return flag.note
    if flag.setting == name:
        return flag.note
    return f"`--{flag.setting}`" + (f": {flag.note}" if flag.note else "")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
