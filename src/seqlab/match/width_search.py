"""Which widths give a model a number of parameters: coarse steps first, finer ones where those miss it."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

WIDEST = 16
"""Times the width that was given; beyond that two models are not comparable by their width."""

STEPS = (16, 8, 2, 1)
"""Of a width, in which the heads have no part; matrix products run best at multiples of 8."""

AROUND = range(-8, 9)
"""Steps to either side of a width at which the feed-forward is tried alone."""


class Widths(NamedTuple):
    """What the search adjusts.

    Args:
        d_model: width of the residual stream.
        d_ff: of the feed-forward.
        inner: the ``d_model`` to which the mixers' inner widths belong; ``None`` is the model's own.
    """

    d_model: int
    d_ff: int
    inner: int | None = None


class Unfit(Exception):
    """The heads do not divide such widths."""


Count = Callable[[Widths], int]
"""Parameters at widths, growing with each of them; raises ``Unfit``."""


def nearest_widths(
    count: Count, target: int, tolerance: float, given: Widths, *, n_heads: int, holds_inner: bool
) -> tuple[Widths, int]:
    """The first candidate within a tolerance of the target, else the nearest of all, with its number of parameters.

    Args:
        count: parameters at widths.
        target: how many there should be.
        tolerance: largest relative difference.
        given: the widths at the start; the feed-forward keeps its proportion as far as it can.
        n_heads: which has to divide a width of attention.
        holds_inner: whether the model has mixers whose inner width can differ from the model's.
    """
    nearest = None
    for widths, reached in candidates(count, target, given, n_heads=n_heads, holds_inner=holds_inner):
        if nearest is None or abs(reached - target) < abs(nearest[1] - target):
            nearest = widths, reached
        if abs(reached - target) <= tolerance * target:
            break
    return nearest


def candidates(
    count: Count, target: int, given: Widths, *, n_heads: int, holds_inner: bool
) -> Iterator[tuple[Widths, int]]:
    """Widths and parameters, from those that change least and run best to the finest.

    First the widths as given; then, in steps of 16 and whole pairs a head, of pairs a head, of a head's width and from
    16 down to 1, the two widths on either side of the target; then the feed-forward alone, at widths around those; last
    the model's width in steps from 16 to 1, and the feed-forward, with the mixers as wide inside as the heads allow.
    """
    yield given, count(given)
    around, finest = [given.d_model], 2 * n_heads

    def proportional(width: int, inner: int | None = None) -> Widths:
        return Widths(width, max(1, round(given.d_ff * width / given.d_model)), inner)

    for unit in sorted({*STEPS, math.lcm(16, 2 * n_heads), 2 * n_heads, n_heads}, reverse=True):
        limit = max(1, WIDEST * given.d_model // unit)
        crossing = first_reaching(lambda k, unit=unit: count(proportional(k * unit)), target, limit)
        if not crossing:
            continue
        around, finest = [k * unit for k, _ in crossing], unit
        yield from ((proportional(k * unit), reached) for k, reached in crossing)
        if crossing[0][1] < target and crossing[0][0] == limit:
            return  # the widest has too few
    yield from feedforward_alone(count, target, [proportional(width) for width in steps_around(around[0], finest)])
    if holds_inner:
        yield from inner_held(count, target, around, proportional)


def inner_held(
    count: Count, target: int, around: list[int], proportional: Callable[[int, int], Widths]
) -> Iterator[tuple[Widths, int]]:
    """With the mixers inside as at each of several widths, the model's width alone, then the feed-forward's beside it.

    The number of parameters then grows with the width and not with its square, so that a step of 1 is always fine.
    """
    nearest = dict.fromkeys(around, 0)
    for step in STEPS:
        for inner in around:

            def count_at(k: int, inner: int = inner, step: int = step) -> int:
                return count(proportional(k * step, inner))

            crossing = first_reaching(count_at, target, max(1, 2 * inner // step))
            nearest[inner] = crossing[0][0] * step if crossing else nearest[inner]
            yield from ((proportional(k * step, inner), reached) for k, reached in crossing if 2 * k * step >= inner)
    for inner, width in nearest.items():
        widths = [proportional(near, inner) for near in steps_around(width, 1) if 2 * near >= inner]
        yield from feedforward_alone(count, target, widths)


def steps_around(width: int, step: int) -> list[int]:
    """Widths in steps to either side of one, the nearest first."""
    return [width + n * step for n in sorted(AROUND, key=abs) if width + n * step >= 1]


def feedforward_alone(count: Count, target: int, around: list[Widths]) -> Iterator[tuple[Widths, int]]:
    """At each of several widths, the feed-forward's on either side of the target, from half its proportion to twice."""
    for widths in around:
        least, most = (widths.d_ff + 1) // 2, 2 * widths.d_ff

        def count_at(d_ff: int, widths: Widths = widths) -> int:
            return count(widths._replace(d_ff=d_ff))

        found = first_reaching(count_at, target, most)
        if found and count_at(least) == count_at(most):
            return  # the model has none
        yield from ((widths._replace(d_ff=d_ff), reached) for d_ff, reached in found if d_ff >= least)


def first_reaching(count: Callable[[int], int], target: int, limit: int) -> list[tuple[int, int]]:
    """The last whole number at which a growing ``count`` is below the target and the first at which it is not.

    Each with its count; the one nearer to the target comes first. The limit alone where none up to it is enough, and
    nothing where one of the numbers does not fit.
    """
    try:
        if count(limit) < target:
            return [(limit, count(limit))]
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            if count(middle) < target:
                low = middle
            else:
                high = middle
        found = [(k, count(k)) for k in (low, high) if k >= 1]
    except Unfit:
        return []
    return sorted(found, key=lambda pair: abs(pair[1] - target))
