"""Which commands of the seeds were run where, and what they left: record.json, written by the tests that run them.

`RLHF_HW_RECORD_SEEDS=1 pytest tests/seed_commands`, once on each stack, writes it anew; otherwise a run must come to what it
says. coming_from.py makes the page's table of it.
"""

from __future__ import annotations

import fcntl
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("record.json")
VARIABLE = "RLHF_HW_RECORD_SEEDS"
GAUDI_STACK = find_spec("optimum") is not None and find_spec("optimum.habana") is not None
STACK = "gaudi" if GAUDI_STACK else "current"
#: device and stack
COLUMNS = ("cpu current", "cpu gaudi", "hpu current", "hpu gaudi")

Ran = dict[str, Any]


def read() -> dict[str, dict[str, Ran]]:
    """Command → column → what it came to there."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def hold(device: str, ran: dict[str, Ran]) -> None:
    """What commands came to on a device of this stack: kept if that was asked for, else it must be what was kept."""
    column = f"{device} {STACK}"
    if not os.environ.get(VARIABLE):
        kept = read()
        found = {name: kept.get(name, {}).get(column) for name in ran}
        assert ran == found, f"stale: {VARIABLE}=1 pytest tests/seed_commands, on each stack, writes it anew"
        return
    with open(FILE, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = json.loads(file.read() or "{}")
        for name, one in ran.items():
            columns = {**kept.get(name, {}), column: one}
            kept[name] = {column: columns[column] for column in COLUMNS if column in columns}
        file.truncate(0)
        json.dump(dict(sorted(kept.items())), file, indent=1, ensure_ascii=False)
        file.write("\n")
