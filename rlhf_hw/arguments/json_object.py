"""A flag whose value is a JSON object: in words, or in the file that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_hw.errors import UserError


def json_object(text: str, flag: str, otherwise: str) -> dict[str, Any]:
    """The object in `text`, or in the file at that path. `otherwise`: what to give where there is no such file.

    Raises:
        UserError: there is no such file, it cannot be read, or holds no JSON object.
    """
    where = flag
    if not text.lstrip().startswith("{"):
        where = f"{flag} {text}"
        try:
            path = Path(text).expanduser()
            if not path.is_file():
                raise UserError(f"{flag}: there is no file {text}; {otherwise}")
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: it is not UTF-8 text; save it as such") from error
        except OSError as error:
            raise UserError(f"{where}: cannot be read: {error.strerror}; check the path") from error
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno}: not JSON: {error.msg}; mend that line") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: holds {type(found).__name__}, expected a JSON object")
    return found
