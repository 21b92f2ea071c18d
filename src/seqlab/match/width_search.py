"""Search for the widths at which a model has a given number of parameters: coarse steps first, then finer ones."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

WIDEST = 16
"""Largest factor on the given width; further apart, two models are not comparable by width."""

STEPS = (16, 8, 2, 1)
"""Step sizes of a width that no heads have to divide; matrix products run best at multiples of 8."""

AROUND = range(-8, 9)
"""Offsets, in steps, of the widths at which the feed-forward alone is varied."""


class Widths(NamedTuple):
    """What the search adjusts.

    Args:
        d_model: width of the residual stream.
        d_ff: width of the feed-forward.
        inner: the ``d_model`` that the mixers' inner widths are computed from; ``None`` for the model's own.
    """

    d_model: int
    d_ff: int
    inner: int | None = None


class Unfit(Exception):
    """The heads do not divide these widths."""


Count = Callable[[Widths], int]
"""Parameters at widths, growing with each of them; raises ``Unfit``."""

Candidate = tuple[Widths, int]
"""Widths, and the number of parameters at them."""


def nearest_widths(
    count: Count, target: int, tolerance: float, given: Widths, *, n_heads: int, holds_inner: bool
) -> Candidate:
    """The first candidate within a tolerance of the target, else the nearest of all.

    Args:
        count: parameters at widths.
        target: how many there should be.
        tolerance: largest relative difference.
        given: the widths to start from, whose proportion the feed-forward keeps where possible.
        n_heads: number of heads, which divides a width of attention.
        holds_inner: whether the model has mixers whose inner width can be set apart from the model's.
    """
    nearest = None
    for widths, reached in Search(count, target, given, n_heads).candidates(holds_inner=holds_inner):
        if nearest is None or abs(reached - target) < abs(nearest[1] - target):
            nearest = widths, reached
        if abs(reached - target) <= tolerance * target:
            break
    return nearest


@dataclass(frozen=True)
class Search:
    """The candidates of a search; its fields are the arguments of ``nearest_widths``."""

    count: Count
    target: int
    given: Widths
    n_heads: int

    def candidates(self, *, holds_inner: bool) -> Iterator[Candidate]:
        """Candidates, from those that change least and run fastest to the finest.

        First the widths as given. Then the two widths on either side of the target, in steps of lcm(16, 2 n_heads),
        2 n_heads, n_heads, 16, 8, 2 and 1, the largest first. Then the feed-forward alone, at widths around those. Last
        the model's width in steps from 16 to 1, and the feed-forward, with the mixers' inner width held.
        """
        yield self.given, self.count(self.given)
        around, finest, pair = [self.given.d_model], 2 * self.n_heads, 2 * self.n_heads
        for step in sorted({*STEPS, math.lcm(16, pair), pair, self.n_heads}, reverse=True):
            widest = max(1, WIDEST * self.given.d_model // step) * step
            found = self.by_width(step, widest, around[0])
            if not found:
                continue
            around, finest = [widths.d_model for widths, _ in found], step
            yield from found
            if found[0][1] < self.target and found[0][0].d_model == widest:
                return  # even the widest has too few parameters
        yield from self.by_feedforward([self.proportional(width) for width in steps_around(around[0], finest)])
        if holds_inner:
            yield from self.with_inner_held(around)

    def with_inner_held(self, around: list[int]) -> Iterator[Candidate]:
        """At each of several inner widths of the mixers, the model's width alone, then the feed-forward's too.

        The mixers' parameters then grow linearly with the width, not quadratically, so that a step of 1 is fine enough.
        """
        nearest = dict.fromkeys(around, 0)
        for step in STEPS:
            for inner in around:
                found = self.by_width(step, max(step, 2 * inner), nearest[inner] or inner, inner)
                nearest[inner] = found[0][0].d_model if found else nearest[inner]
                yield from ((widths, reached) for widths, reached in found if 2 * widths.d_model >= inner)
        for inner, width in nearest.items():
            yield from self.by_feedforward(
                [self.proportional(near, inner) for near in steps_around(width, 1) if 2 * near >= inner]
            )

    def proportional(self, width: int, inner: int | None = None) -> Widths:
        """The widths at ``width``, with the feed-forward in the given proportion."""
        return Widths(width, max(1, round(self.given.d_ff * width / self.given.d_model)), inner)

    def by_width(self, step: int, widest: int, near: int, inner: int | None = None) -> list[Candidate]:
        """The multiples of ``step``, up to the widest, on either side of the target, which is looked for ``near``."""
        return self.on_either_side(lambda k: self.proportional(k * step, inner), widest // step, near // step)

    def by_feedforward(self, around: list[Widths]) -> Iterator[Candidate]:
        """At each of several widths, the two ``d_ff`` on either side of the target, from half its own to twice."""
        for widths in around:
            least, most = (widths.d_ff + 1) // 2, 2 * widths.d_ff
            try:
                fewest, many = (self.count(widths._replace(d_ff=d_ff)) for d_ff in (least, most))
            except Unfit:
                continue
            if fewest == many:
                return  # the model has no feed-forward
            near = least + (self.target - fewest) * (most - least) // (many - fewest)  # parameters are linear in d_ff
            found = self.on_either_side(lambda d_ff, widths=widths: widths._replace(d_ff=d_ff), most, near)
            yield from ((widths, reached) for widths, reached in found if widths.d_ff >= least)

    def on_either_side(self, widths_at: Callable[[int], Widths], limit: int, near: int) -> list[Candidate]:
        """The last widths below the target and the first at or above it; the nearer come first.

        Only the widest if even those are below the target; nothing if the heads do not divide the widths.
        """

        def count_at(k: int) -> int:
            return self.count(widths_at(k))

        try:
            if count_at(limit) < self.target:
                return [(widths_at(limit), count_at(limit))]
            first = first_of(lambda k: count_at(k) >= self.target, limit, near)
            found = [(widths_at(k), count_at(k)) for k in (first - 1, first) if k >= 1]
        except Unfit:
            return []
        return sorted(found, key=lambda candidate: abs(candidate[1] - self.target))


def first_of(holds: Callable[[int], bool], limit: int, near: int) -> int:
    """The first number from 1 on of which something holds, as it does of all from there to the limit.

    It is looked for around ``near``, in steps that double, then by bisection.
    """
    high, step = min(max(near, 1), limit), 1
    if holds(high):
        while (low := high - step) >= 1 and holds(low):
            high, step = low, 2 * step
        low = max(low, 0)
    else:
        low = high
        while (high := low + step) < limit and not holds(high):
            low, step = high, 2 * step
        high = min(high, limit)
    return bisect_left(range(high), True, lo=low + 1, key=holds)


def steps_around(width: int, step: int) -> list[int]:
    """Widths in steps on both sides of ``width``, the nearest first."""
    return [width + n * step for n in sorted(AROUND, key=abs) if width + n * step >= 1]
