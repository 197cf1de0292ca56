"""Reading a run directory back, whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_hw.errors import UserError
from rlhf_hw.run_files import (
    COMMAND,
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    METRICS,
    SAMPLES,
    STATUS,
    read_json_lines,
    read_metrics,
)


@dataclass(frozen=True)
class Run:
    """What a run directory holds; a file that is missing leaves its part empty."""

    path: Path
    name: str
    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]
    status: dict[str, Any]
    environment: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    command: str
    warnings: list[str]  # about lines that could not be read


def read_run(directory: Path) -> Run:
    """Raises UserError where `directory` is not a run directory, or a file in it was edited beyond recognition."""
    if not directory.is_dir():
        raise UserError(f"report: {str(directory)!r} is not a directory; name the --output_dir of a run")
    if not (directory / METRICS).exists() and not (directory / STATUS).exists():
        raise UserError(
            f"report: {str(directory)!r} has neither {METRICS} nor {STATUS}; name the --output_dir of a run"
        )
    metrics, samples, events = (
        read_metrics(directory),
        read_json_lines(directory / SAMPLES),
        read_json_lines(directory / EVENTS),
    )
    config_text = _text(directory / CONFIG)
    try:
        config = yaml.safe_load(config_text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"report: {str(directory / CONFIG)!r} is not YAML any more ({error})") from error
    return Run(
        path=directory,
        name="/".join(directory.resolve().parts[-2:]).lstrip("/"),
        rows=metrics.rows,
        samples=samples.rows,
        events=events.rows,
        status=_json(directory / STATUS),
        environment=_json(directory / ENVIRONMENT),
        config=config if isinstance(config, dict) else {},
        config_text=config_text,
        command=_text(directory / COMMAND),
        warnings=metrics.warnings + samples.warnings + events.warnings,
    )


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"report: {str(path)!r} is not JSON any more ({error})") from error
    return value if isinstance(value, dict) else {}
