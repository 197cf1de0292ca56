"""What a run left in its directory, and rows for it to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A .jsonl file of `rows`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory: Path) -> list[float]:
    """The training losses of a run, step by step."""
    return [row["loss"] for row in metrics(directory) if "loss" in row]
