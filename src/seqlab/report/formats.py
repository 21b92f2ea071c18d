"""Numbers as text: as many digits as an interval supports, and prefixes for large ones."""

import math
from collections.abc import Callable

from seqlab.report.statistics import Estimate

NONE = "–"  # noqa: RUF001
"""In place of a missing number."""

PREFIXES = ("", "k", "M", "G", "T", "P", "E")

Unit = tuple[float, str, int]
"""A unit's size, its sign, and the decimal places for three digits."""


def decimals(estimate: Estimate) -> int:
    """Decimal places: two digits of the interval's half width; without an interval four digits of the mean."""
    width = estimate.half_width
    places = 1 - exponent(width) if width else 3 - exponent(estimate.mean)
    return min(8, max(0, places))


def exponent(number: float) -> int:
    """The power of ten of the first digit."""
    return math.floor(math.log10(abs(number))) if number else 0


def mean(estimate: Estimate | None) -> str:
    """The mean with as many digits as its interval supports."""
    return NONE if estimate is None else f"{estimate.mean:.{decimals(estimate)}f}"


def mean_and_std(estimate: Estimate | None) -> str:
    """``1.754 ± 0.013``; the mean alone with one seed."""
    if estimate is None or estimate.std is None:
        return mean(estimate)
    return f"{mean(estimate)} ± {estimate.std:.{decimals(estimate)}f}"


def interval(estimate: Estimate | None) -> str:
    """``[1.723, 1.786]``; ``one seed`` without an interval."""
    if estimate is None:
        return NONE
    if estimate.low is None:
        return "one seed"
    places = decimals(estimate)
    return f"[{estimate.low:.{places}f}, {estimate.high:.{places}f}]"


def signed(estimate: Estimate) -> str:
    """A difference's mean, with its sign."""
    return f"{estimate.mean:+.{decimals(estimate)}f}"


def scaled(number: float | None) -> str:
    """Three digits and a prefix: ``1.23 M`` for 1234567."""
    return in_unit(number, prefix_of)


def scaled_bytes(number: float | None) -> str:
    """Bytes with a binary prefix: ``1.50 KiB`` for 1536."""
    return in_unit(number, bytes_of)


def cost(estimate: Estimate | None, unit_of: Callable[[float], Unit]) -> str:
    """``42.7 ± 1.3 s``: three digits of the mean, and the standard deviation unless it rounds to zero."""
    return NONE if estimate is None else in_unit(estimate.mean, unit_of, estimate.std)


def in_unit(number: float | None, unit_of: Callable[[float], Unit], std: float | None = None) -> str:
    """A number in the unit that suits it, with its standard deviation in the same."""
    if number is None:
        return NONE
    size, sign, places = unit_of(number)
    spread = round((std or 0.0) / size, places)
    return f"{number / size:.{places}f}{f' ± {spread:.{places}f}' if spread else ''} {sign}".rstrip()


def prefix_of(number: float) -> Unit:
    """The decimal prefix for a number."""
    rounded = float(f"{number:.3g}")  # 999,999 is 1.00 M, not 1000 k
    power = min(len(PREFIXES) - 1, exponent(rounded) // 3) if abs(rounded) >= 1000 else 0
    value = rounded / 1000**power
    return 1000.0**power, PREFIXES[power], max(0, 2 - exponent(value)) if power or not value.is_integer() else 0


def bytes_of(number: float) -> Unit:
    """The unit for a number of bytes."""
    power = next((power for power in range(4) if abs(number) < 1000 * 1024**power), 4)
    size = 1024.0**power
    return size, ("B", "KiB", "MiB", "GiB", "TiB")[power], max(0, 2 - exponent(number / size)) if power else 0


def time_of(seconds: float) -> Unit:
    """The unit for a number of seconds: seconds up to two minutes, minutes up to two hours, then hours."""
    units = ((3600, "h"), (60, "min"), (1, "s"))
    size, sign = next((size, sign) for size, sign in units if seconds >= 2 * size or size == 1)
    return size, sign, max(0, 2 - exponent(seconds / size))
