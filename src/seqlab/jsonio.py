"""JSON: the lines of ``metrics.jsonl``, numbers that are not finite, files written whole or not at all."""

import contextlib
import json
import math
from pathlib import Path
from types import NoneType
from typing import Any

Record = dict[str, Any]


def record_of(line: bytes) -> Record | None:
    """The record that a line holds: a flat mapping of numbers, with ``step`` and ``split``; ``None`` if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # a number of thousands of digits is a ValueError too
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("split"), str):
        return None
    return record if all(type(v) in (int, float, NoneType) for k, v in record.items() if k != "split") else None


def finite(value: Any) -> Any:
    """``None`` for a number that is not finite, which JSON lacks; any other value unchanged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def dump(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, into a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")


def load(path: Path) -> dict[str, Any]:
    """A JSON file's content, empty where there is none or it cannot be read now."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
