"""Costs of a training step along each axis of growth: curves, their exponents, where they grow faster than the work.

The work of a step is its FLOPs, as ``seqlab.models.counting.training_flops`` counts them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

from rich.table import Table

from seqlab.benchmarks.exponents import Exponent, fit
from seqlab.benchmarks.report import Line, Panel, number, table
from seqlab.benchmarks.results import ratio
from seqlab.report.formats import scaled_bytes
from seqlab.report.plots.style import MARKERS, architecture, colours

TOLERANCE = 0.05
"""A time a FLOP, or an exponent, that is larger by no more than this is not taken for growth."""

GROWS = "grows"
"""The last word of a cell where the time grows faster than the work."""


class Sizes(NamedTuple):
    """The sizes of a training step; their names are the axes of growth."""

    batch: int  # sequences
    length: int  # tokens of each
    width: int  # d_model; d_ff and n_heads go with it
    depth: int  # layers
    vocabulary: int


AXES = Sizes._fields


@dataclass
class Point:
    """One model's step at given sizes. What was not measured is ``None`` or empty."""

    model: str
    batch: int
    length: int
    width: int
    depth: int
    vocabulary: int
    flops: int | None = None  # of the whole step
    status: str = "measured"  # or failed, or skipped, as a curve ends; or refused, by the model
    reason: str | None = None
    seconds: float | None = None  # the median of the samples
    samples: list[float] = field(default_factory=list)
    first_call: float | None = None  # seconds, compilation included
    peak_bytes: int | None = None  # weights and the optimizer's state included

    @property
    def sizes(self) -> Sizes:
        """The sizes as one value."""
        return Sizes(*(getattr(self, axis) for axis in AXES))


@dataclass(frozen=True)
class Curve:
    """One model's measured points along one axis, ascending, the base point among them."""

    axis: str
    base: Point
    points: list[Point]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.base.model

    @property
    def values(self) -> list[int]:
        """The points' sizes along the axis."""
        return [getattr(point, self.axis) for point in self.points]

    def exponent(self, column: str) -> Exponent | None:
        """The exponent of a column of the points."""
        return fit(self.values, [getattr(point, column) for point in self.points])

    @property
    def relative(self) -> list[float]:
        """Each point's time a FLOP, as a multiple of the base point's."""
        base = self.base.seconds / self.base.flops
        return [point.seconds / point.flops / base for point in self.points]

    @property
    def grows(self) -> list[bool]:
        """Whether each point takes more time a FLOP than a smaller one did."""
        costs = self.relative
        return [cost > (1 + TOLERANCE) * min(costs[:place], default=cost) for place, cost in enumerate(costs)]


def as_dict(curve: Curve) -> dict[str, Any]:
    """What is computed from a curve, as JSON."""
    exponents = {column: curve.exponent(column) for column in ("seconds", "flops", "peak_bytes")}
    return {
        "axis": curve.axis,
        "model": curve.model,
        "values": curve.values,
        "time_a_flop": curve.relative,
        "grows": curve.grows,
        "exponents": {column: found and asdict(found) for column, found in exponents.items()},
    }


def curves(points: Sequence[Point], base: Sizes) -> list[Curve]:
    """The curves through the base point, by axis and then by model, where more than the base point was measured.

    Args:
        points: of all models, each sizes once.
        base: the sizes that all axes share.
    """
    measured = [point for point in points if point.status == "measured"]
    bases = {point.model: point for point in measured if point.sizes == base}
    found = []
    for axis in AXES:
        for model, middle in bases.items():
            along = [
                p for p in measured if p.model == model and p.sizes._replace(**{axis: getattr(base, axis)}) == base
            ]
            if len(along) > 1:
                found.append(Curve(axis, middle, sorted(along, key=lambda point: point.sizes)))
    return found


def endings(points: Sequence[Point], base: Sizes) -> list[str]:
    """A line for each point that was not measured."""
    lines = []
    for point in points:
        if point.status != "measured":
            other = [axis for axis in AXES if getattr(point, axis) != getattr(base, axis)]
            where = ", ".join(f"{axis} {getattr(point, axis):,}" for axis in other) or "base point"
            lines.append(f"{point.model}, {where}: {point.reason}")
    return lines


def tables(found: Sequence[Curve], base: Sizes, where: str) -> list[Table]:
    """A table for each axis, and one of exponents; none without curves.

    Args:
        found: the curves.
        base: the sizes that all axes share.
        where: the device and the precision, for the titles.
    """
    axes = dict.fromkeys(curve.axis for curve in found)
    made = [axis_table([curve for curve in found if curve.axis == axis], base, where) for axis in axes]
    return [*made, exponents_table(found, where)] if found else []


def axis_table(found: Sequence[Curve], base: Sizes, where: str) -> Table:
    """A line for each model and size along the axis of the curves."""
    axis = found[0].axis
    fixed = ", ".join(f"{name} {value:,}" for name, value in base._asdict().items() if name != axis)
    rows = [
        {
            "model": curve.model,
            axis: f"{getattr(point, axis):,}",
            "ms": number(point.seconds, 1e3),
            "k tokens/s": number(point.batch * point.length / point.seconds, 1e-3),
            "peak MB": number(ratio(point.peak_bytes, 1e6)),
            "time a FLOP": number(relative) + f" {GROWS}" * grows,
        }
        for curve in found
        for point, relative, grows in zip(curve.points, curve.relative, curve.grows, strict=True)
    ]
    law = f"time a FLOP: beside the base point's; {GROWS}: it is more than {TOLERANCE:.0%} above that of a smaller size"
    return table(f"A training step against {axis}; {fixed}; {where}", rows, names=2, caption=law)


def exponents_table(found: Sequence[Curve], where: str) -> Table:
    """The powers of each axis with which time, memory and FLOPs grow."""
    rows = []
    for curve in found:
        time, memory, work = (curve.exponent(column) for column in ("seconds", "peak_bytes", "flops"))
        rows.append(
            {
                "axis": curve.axis,
                "model": curve.model,
                "fitted over": f"{time.first:,} to {time.last:,}" if time else "too few points",
                "time": str(time or "-"),
                "FLOPs": f"{work.value:.2f}" if work else "-",
                "time beyond FLOPs": beyond(time, work),
                "memory": str(memory or "-"),
            }
        )
    law = "cost ~ size^exponent over the sizes named, with its standard error: 0 constant, 1 linear, 2 quadratic"
    word = f"{GROWS}: by more than {TOLERANCE:g} and than twice that error"
    return table(f"Exponents of a training step, {where}", rows, names=2, caption=f"{law}; {word}")


def beyond(time: Exponent | None, work: Exponent | None) -> str:
    """By how much the exponent of the time exceeds that of the FLOPs, and whether that is growth."""
    if time is None or work is None:
        return "-"
    excess = time.value - work.value
    return f"{excess:+.2f}" + f" {GROWS}" * (excess > max(TOLERANCE, 2 * time.standard_error))


def panels(found: Sequence[Curve]) -> list[Panel]:
    """A column for each axis: the time of a step, and below it the peak memory; legends show the exponents."""
    models = list(dict.fromkeys(curve.model for curve in found))
    by_architecture, markers = colours(models), dict(zip(models, cycle(MARKERS), strict=False))

    def lines(axis: str, column: str, scale: float) -> list[Line]:
        drawn = []
        for curve in (curve for curve in found if curve.axis == axis):
            points = [(x, getattr(point, column)) for x, point in zip(curve.values, curve.points, strict=True)]
            points = [(x, y * scale) for x, y in points if y]  # a logarithmic axis has no zero
            look = {"color": by_architecture[architecture(curve.model)], "marker": markers[curve.model]}
            if points:
                drawn.append(Line(f"{curve.model}: {curve.exponent(column) or '-'}", points, look))
        return drawn

    axes = list(dict.fromkeys(curve.axis for curve in found))
    shown = {"legend": "exponent"}
    times = [
        Panel(f"Time of a step against {axis}", "milliseconds", lines(axis, "seconds", 1e3), xlabel=axis, **shown)
        for axis in axes
    ]
    return times + [
        Panel(f"Peak memory against {axis}", "bytes", lines(axis, "peak_bytes", 1), scaled_bytes, xlabel=axis, **shown)
        for axis in axes
    ]
