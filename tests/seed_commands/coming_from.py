"""The tables of docs/coming-from.md, made from the dialects: `python tests/seed_commands/coming_from.py` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf_hw.arguments.dialects.dialect import Flag
from rlhf_hw.arguments.dialects.recognise import DIALECTS
from rlhf_hw.arguments.translation import shown

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
_PLACE = re.compile(r"<!-- flags: (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(page: str) -> str:
    """The page with every `<!-- flags: DIALECT COMMAND -->` … `<!-- end -->` filled in."""
    return _PLACE.sub(
        lambda place: f"<!-- flags: {place[1]} {place[2]} -->\n{tables(place[1], place[2])}<!-- end -->", page
    )


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
