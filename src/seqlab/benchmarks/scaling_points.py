"""Training steps on several GPUs: what was measured of each, efficiencies beside the fewest GPUs, tables and a picture.

Weak scaling leaves every GPU its sequences, strong scaling shares the same ones among all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple

from rich.table import Table

from seqlab.benchmarks.report import Line, Panel, number, table
from seqlab.benchmarks.results import ratio

OURS, NO_GRAPH, GRAPH, BARE = "ours", "ours, no graph", "ours, graph", "plain DDP"
"""The update that train.py makes; the same without a CUDA graph where it has one, and with where it has none; a bare
loop around torch's module."""

SCALINGS = ("weak", "strong")
LOOKS = {
    (OURS, "weak"): {"color": "#0072B2", "marker": "o"},
    (OURS, "strong"): {"color": "#0072B2", "marker": "o", "linestyle": "dashed"},
    (BARE, "weak"): {"color": "#606060", "marker": "s"},
    (BARE, "strong"): {"color": "#606060", "marker": "s", "linestyle": "dashed"},
}


class Case(NamedTuple):
    """A training step to measure."""

    model: str
    contestant: str
    gpus: int
    rows: int  # sequences of each GPU


@dataclass
class Point:
    """The steps of a case. What was not measured is ``None`` or empty."""

    model: str
    contestant: str
    gpus: int
    rows: int
    length: int
    status: str = "measured"  # or failed
    reason: str | None = None
    samples: list[float] = field(default_factory=list)  # seconds of each step
    first_call: float | None = None  # seconds, compilation included
    peak_bytes: int | None = None  # the largest of the GPUs', weights and the optimizer's state included
    first_loss: float | None = None  # of the first step, in nats: the same for all contestants
    parameters: int | None = None

    @property
    def seconds(self) -> float | None:
        """The median of the steps."""
        return median(self.samples) if self.samples else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all GPUs together."""
        return ratio(self.gpus * self.rows * self.length, self.seconds)

    @property
    def spread(self) -> tuple[float, float] | None:
        """The first and the third quartile of the steps, in seconds."""
        if len(self.samples) < 2:
            return None
        first, _, third = quantiles(self.samples, n=4, method="inclusive")
        return first, third


class Series(NamedTuple):
    """One contestant's points of one scaling, from the fewest GPUs on."""

    model: str
    scaling: str
    contestant: str
    points: list[Point]

    @property
    def efficiencies(self) -> list[float | None]:
        """Tokens/s of each GPU, beside that of the fewest GPUs that were measured; so is no graph, beside a graph."""
        measured = [point for point in self.points if point.tokens_per_second]
        return [
            ratio(ratio(point.tokens_per_second, point.gpus), measured[0].tokens_per_second / measured[0].gpus)
            if measured
            else None
            for point in self.points
        ]


def series(points: Sequence[Point], batch: int, global_batch: int) -> list[Series]:
    """By model, scaling and contestant.

    Args:
        points: of all cases; a case may belong to both scalings.
        batch: sequences of each GPU in weak scaling.
        global_batch: sequences of all GPUs in strong scaling.
    """
    rows = {"weak": lambda gpus: batch, "strong": lambda gpus: global_batch / gpus}
    found = []
    for model in dict.fromkeys(point.model for point in points):
        for scaling in SCALINGS:
            of_it = [point for point in points if point.model == model and point.rows == rows[scaling](point.gpus)]
            of_it.sort(key=lambda point: point.gpus)
            for contestant, members in ((OURS, (OURS, NO_GRAPH, GRAPH)), (BARE, (BARE,))):
                if own := [point for point in of_it if point.contestant in members]:
                    found.append(Series(model, scaling, contestant, own))
    return found


def as_dict(one: Series) -> dict[str, object]:
    """What is computed from a series, as JSON."""
    return {
        **{key: getattr(one, key) for key in ("model", "scaling", "contestant")},
        "gpus": [point.gpus for point in one.points],
        "by": [point.contestant for point in one.points],
        "tokens_per_second": [point.tokens_per_second for point in one.points],
        "efficiency": one.efficiencies,
    }


def tables(found: Sequence[Series], what: dict[str, str], where: str) -> list[Table]:
    """A table for each model and scaling.

    Args:
        found: the series.
        what: by model, how it was trained.
        where: the device and the precision.
    """
    made = []
    for model, scaling in dict.fromkeys((one.model, one.scaling) for one in found):
        both = [one for one in found if (one.model, one.scaling) == (model, scaling)]
        rows = [row for one in both for row in rows_of(one)]
        law = "efficiency: tokens/s of a GPU beside the first row's of the same; spread: the quartiles of the steps"
        made.append(table(f"{model}, {scaling} scaling; {what[model]}; {where}", rows, names=1, caption=law))
    return made


def rows_of(one: Series) -> list[dict[str, str]]:
    """A line for each point."""
    return [
        {
            "by": point.contestant,
            "GPUs": f"{point.gpus}",
            "batch": f"{point.gpus} x {point.rows} x {point.length:,}",
            "k tokens/s": number(point.tokens_per_second, 1e-3),
            "ms": number(point.seconds, 1e3),
            "spread": " to ".join(number(end, 1e3) for end in point.spread or ()) or "-",
            "peak GB a GPU": number(ratio(point.peak_bytes, 1e9)),
            "efficiency": number(efficiency),
        }
        for point, efficiency in zip(one.points, one.efficiencies, strict=True)
    ]


def failures(points: Sequence[Point]) -> list[str]:
    """A line for each case that was not measured."""
    return [
        f"{p.model}, {p.contestant}, {p.gpus} x {p.rows} x {p.length:,}: {p.reason}"
        for p in points
        if p.status != "measured"
    ]


def panels(found: Sequence[Series]) -> list[Panel]:
    """For each model its efficiencies against the number of GPUs."""
    made = []
    for model in dict.fromkeys(one.model for one in found):
        lines = []
        for one in (one for one in found if one.model == model):
            pairs = zip(one.points, one.efficiencies, strict=True)
            drawn = [(p.gpus, value) for p, value in pairs if value and p.contestant == one.contestant]
            if drawn:
                lines.append(Line(f"{one.contestant}, {one.scaling}", drawn, LOOKS[one.contestant, one.scaling]))
        made.append(Panel(model, "efficiency", lines))
    return made
