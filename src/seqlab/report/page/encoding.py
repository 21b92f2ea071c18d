"""The page's data as JSON for a script element."""

import json
from typing import Any

import numpy as np

from seqlab.report.plots.bands import Band
from seqlab.report.plots.style import Style

DIGITS = 6
"""Significant digits of a number in a chart, where more would not be visible."""


def as_json(value: Any) -> str:
    """JSON for a script element, whatever its strings contain: without ``<``, which could end it or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII, so no surrogate can break the file
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class Encoder:
    """Encodes charts for JSON; arrays and styles that several lines share are stored once, and referred to by place.

    The curves of a group share the losses of all their axes, those of many groups their steps, and with one seed a
    band's edges are its mean.
    """

    def __init__(self) -> None:
        self.arrays: list[list[float | None]] = []
        self.styles: dict[Style, int] = {}
        self.places: dict[bytes, int] = {}

    def encode(self, value: Any) -> Any:
        """A value as containers, numbers and strings for JSON."""
        if isinstance(value, Style):
            return self.styles.setdefault(value, len(self.styles))
        if isinstance(value, Band):
            return [self.place_of(values) for values in (value.x, value.mean, value.low, value.high)]
        if isinstance(value, dict):
            return {key: self.encode(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.encode(item) for item in value]
        return self.encode(vars(value)) if hasattr(value, "__dict__") else value

    def place_of(self, values: np.ndarray) -> int:
        """The place of an array (points,) in ``arrays``."""
        place = self.places.setdefault(values.tobytes(), len(self.arrays))
        if place == len(self.arrays):
            self.arrays.append([None if x != x else float(f"{x:.{DIGITS}g}") for x in values.tolist()])
        return place
