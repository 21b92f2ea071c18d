"""The power of a size with which a cost grows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPAN = 8
"""An exponent is fitted to the sizes within this factor of the largest, where fixed costs matter least."""

FEWEST = 3
"""Points that a fit needs: through two there is always a line."""


@dataclass(frozen=True)
class Exponent:
    """The slope of a curve on two logarithmic axes: 0 is constant, 1 linear, 2 quadratic."""

    value: float
    standard_error: float
    first: int  # sizes of the fit
    last: int
    points: int

    def __str__(self) -> str:
        value = round(self.value, 2) + 0.0  # no minus before a zero
        return f"{value:.2f} ± {self.standard_error:.2f}"


def fit(sizes: Sequence[int], values: Sequence[float | None]) -> Exponent | None:
    """Least squares of log value over log size, for the largest sizes.

    The standard error is that of the slope, from the residuals. ``None`` with too few points, and where a value has no
    logarithm.
    """
    pairs = [(x, y) for x, y in zip(sizes, values, strict=True) if y is not None and SPAN * x >= sizes[-1]]
    if len(pairs) < FEWEST or any(value <= 0 for _, value in pairs):
        return None
    (slope, _), covariance = np.polyfit(*np.log(np.array(pairs, dtype=np.float64)).T, 1, cov=True)
    return Exponent(float(slope), math.sqrt(covariance[0, 0]), pairs[0][0], pairs[-1][0], len(pairs))
