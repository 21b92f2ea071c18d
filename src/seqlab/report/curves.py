"""Reading ``metrics.jsonl``: one record a line, into an array for each split and column.

Of a long run's training records only about a thousand are parsed, at equal distances; of the others only the first and
last character are checked. Validation and test records are all parsed.
"""

import json
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic_core import from_json

Curve = dict[str, np.ndarray]

AXES = {"step": "steps", "tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training"}
"""What training spends: columns of every record of metrics (``Trainer.spent``), with the titles of their axes."""

POINTS = 1000
"""The fewest training records parsed of a long run; of a run with less than twice as many, all are parsed."""

TRAIN = b'"split": "train"'
HEAD = 48
"""Bytes at the start of a line that contain its step and split."""


class Damaged(ValueError):
    """A file that a run cannot have written, with the reason."""


def read_curves(content: bytes) -> dict[str, Curve]:
    """The curves of a whole metrics file, by split.

    Args:
        content: the file's bytes. Each line is a flat JSON object with ``step`` and ``split``.

    Returns:
        For each split, float64 arrays of one length by column (``step``, ``tokens``, ``flops``, ``seconds``, ``loss``
        and what else was measured), in the order of the steps; not a number where a record has null or lacks the key.

    Raises:
        Damaged: a line is no such object.
    """
    by_split: dict[str, list[dict[str, Any]]] = {}
    for record in parse(select_lines(content) if len(content) > 2 * POINTS * HEAD else content.splitlines()):
        split = record.get("split")
        if not isinstance(split, str) or record.get("step") is None:
            raise Damaged("a record has no step and split")
        by_split.setdefault(split, []).append(record)
    return {split: to_arrays(records) for split, records in by_split.items()}


def select_lines(content: bytes) -> list[bytes]:
    """The lines of a long file that are kept: of training about ``POINTS`` and the last one, of other splits all."""
    content = content if content.endswith(b"\n") else content + b"\n"
    characters = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))  # (lines,)
    starts = np.append(0, ends[:-1] + 1)  # (lines,)
    complete = (characters[starts] == ord("{")) & (characters[ends - 1] == ord("}"))
    windows = sliding_window_view(characters, HEAD)
    heads = windows[np.minimum(starts, len(windows) - 1)].view(f"S{HEAD}")[:, 0]  # (lines,)
    train = np.flatnonzero(complete & (np.strings.find(heads, TRAIN) >= 0))
    distance = max(1, len(train) // POINTS)
    wanted = np.ones(len(ends), dtype=bool)
    wanted[train] = False
    wanted[train[distance - 1 :: distance]] = wanted[train[-1:]] = True
    return [content[start:end] for start, end in zip(starts[wanted].tolist(), ends[wanted].tolist(), strict=True)]


def parse(lines: list[bytes]) -> list[dict[str, Any]]:
    """The records of whole lines.

    Raises:
        Damaged: a line is no JSON object.
    """
    try:
        records = from_json(b"[" + b",".join(lines) + b"]")  # several times as fast as json
    except ValueError:
        records = [parse_line(line) for line in lines]
    if len(records) != len(lines) or not set(map(type, records)) <= {dict}:
        raise Damaged("a line is no record")
    return records


def parse_line(line: bytes) -> Any:
    """What a line holds.

    Raises:
        Damaged: it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Damaged(f"a line is no record: {line[:40]!r}") from None


def to_arrays(records: list[dict[str, Any]]) -> Curve:
    """The numbers of one split's records, in the order of the steps: float64 arrays (records,) by column.

    Raises:
        Damaged: a value is neither a number nor null.
    """
    key_orders = dict.fromkeys(map(tuple, records))  # nearly always one: the keys of the first record
    names = [name for name in dict.fromkeys(chain.from_iterable(key_orders)) if name != "split"]
    values = [record.get(name) for name in names for record in records]
    if not set(map(type, values)) <= {int, float, NoneType}:
        wrong = next(i for i, value in enumerate(values) if type(value) not in (int, float, NoneType))
        raise Damaged(f"{names[wrong // len(records)]} is no number in a record")
    table = np.array(values, dtype=np.float64).reshape(len(names), len(records))  # null becomes not a number
    arrays = dict(zip(names, table, strict=True))
    order = np.argsort(arrays["step"], kind="stable")
    return {name: column[order] for name, column in arrays.items()}


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
