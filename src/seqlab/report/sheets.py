"""The tables of a comparison as text in rows, whatever they are printed or written with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from seqlab.report.budgets import UNITS
from seqlab.report.compare import Comparison, Difference
from seqlab.report.difficulty import titles
from seqlab.report.figures import (
    NONE,
    Unit,
    bytes_of,
    cost,
    interval,
    mean,
    mean_and_std,
    prefix_of,
    scaled,
    scaled_bytes,
    signed,
    time_of,
)
from seqlab.report.grids import ENOUGH, PARAMETERS, grid_of, headline, sizes_needed
from seqlab.report.groups import in_short
from seqlab.report.rows import Row
from seqlab.report.statistics import INTERVAL, Estimate

MAIN_METRICS = ("perplexity", "accuracy", "top1_accuracy", "r2")
"""Of the test metrics besides the loss, those that a table shows; a file of all is written too."""

INTERVAL_NOTE = f"Losses of tokens are in nats. ±: standard deviation over the seeds; in brackets: {INTERVAL}."

DIFFERENCES = "Paired differences"
TEXT = frozenset({"scan backend", "precision", "device", "verdict", "read from"})
"""Headings of columns that hold words, besides the first."""


@dataclass(frozen=True)
class Sheet:
    """A table: headings, lines of cells, and how many columns at its left are names."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    names: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def is_text(self) -> list[bool]:
        """For each column whether it holds words, which stand at its left, or numbers."""
        return [i < self.names or heading in TEXT for i, heading in enumerate(self.headings)]


def sheets_of(comparison: Comparison) -> list[Sheet]:
    """For each data set its results, accuracy by difficulty, targets and costs; then what is across the groups."""
    found = []
    for data in dict.fromkeys(row.group.data for row in comparison.rows):
        rows = [row for row in comparison.rows if row.group.data == data]
        found += [results_sheet(data, rows, comparison), *probe_sheets(data, rows), costs_sheet(data, rows)]
    if comparison.at is not None and comparison.at.sizes:
        found.append(sizes_sheet(comparison))
    if comparison.differences:
        found.append(differences_sheet(comparison.differences))
    return found


def number_of_seeds(row: Row) -> str:
    """How many, and what became of the others."""
    count = str(len(row.group.runs))
    return f"{count} ({'; '.join(row.left_out)})" if row.left_out else count


def partial(estimate: Estimate | None, row: Row, text: str) -> str:
    """The text, with how many seeds it is from where some have no number."""
    short = estimate is not None and estimate.n < len(row.group.runs)
    return f"{text} (n = {estimate.n})" if short else text


def chance_notes(rows: Sequence[Row], name: str = "") -> list[str]:
    """What a guess reaches, in a sentence, of data that say it; ``name`` is the data's, where there are several."""
    values = sorted({row.chance for row in rows if row.chance is not None})
    if not values:
        return []
    extent = " to ".join(f"{value:.2g}" for value in dict.fromkeys((values[0], values[-1])))
    return [f"Accuracy of a guess{f' on {name}' if name else ''} (chance): {extent}."]


def results_sheet(data: str, rows: Sequence[Row], comparison: Comparison) -> Sheet:
    """Losses and main metrics over the seeds."""
    judged = headline(rows)
    best = f"best validation {judged}"
    metrics = [name for name in MAIN_METRICS if name != judged and all(name in row.test for row in rows)][:2]
    others = metrics if judged == "loss" else ["loss", *metrics]
    headings = ["model", "seeds", "parameters", best, f"test {judged}", "95 % interval"]
    headings += ["test loss" if name == "loss" else name.replace("_", " ") for name in others]
    active = any(row.active_parameters != row.parameters for row in rows)
    lines = [
        [
            row.group.label,
            number_of_seeds(row),
            f"{row.parameters:,}",
            mean(row.validation.get(judged)),
            partial(row.test[judged], row, mean_and_std(row.test[judged])),
            interval(row.test[judged]),
            *(partial(row.test[name], row, mean_and_std(row.test[name])) for name in others),
        ]
        for row in rows
    ]
    notes = [INTERVAL_NOTE, *chance_notes(rows)]
    if active:
        headings.insert(3, "active")
        for line, row in zip(lines, rows, strict=True):
            line.insert(3, f"{row.active_parameters:,}")
        notes.append("Active: the parameters that a token uses, of experts only those that it goes to.")
    at = comparison.at
    if at is not None and data in at.budgets:
        budget = f"{scaled(at.budgets[data])} {UNITS[at.axis]}"
        place = headings.index(best)
        headings[place:place] = [f"validation loss at {budget}", "95 % interval", "best so far"]
        for line, row in zip(lines, rows, strict=True):
            loss, lowest = (None, None) if row.at is None else (row.at.loss, row.at.best)
            line[place:place] = [partial(loss, row, mean_and_std(loss)), interval(loss), mean(lowest)]
        notes.append(
            f"At {budget}: each seed's validation curve is read there on the straight line between the evaluations "
            "around it; nothing is extrapolated. The other columns are of whole runs, whatever they spent."
        )
    return Sheet(f"{data}: results", headings, lines, notes=notes)


def needed_sheets(rows: Sequence[Row]) -> list[Sheet]:
    """The size that each model needs in each data setting, where accuracy was swept over both."""
    grid = grid_of([row.group for row in rows])
    if grid is None or headline(rows) != "accuracy":
        return []
    lines = sizes_needed(grid, {id(row.group): row.test["accuracy"] for row in rows})
    size = PARAMETERS.get(grid.parameter, grid.parameter)
    sizes = ", ".join(map(in_short, grid.sizes))
    note = (
        f"The smallest {size} of {sizes} with a mean test accuracy of at least {ENOUGH:g}; larger ones may have less. "
        "Only completed runs count."
    )
    return [Sheet(f"{grid.data}: {size} needed", ["model", *grid.titles], lines, notes=[note])]


def probe_sheets(data: str, rows: Sequence[Row]) -> list[Sheet]:
    """Sizes needed, accuracy by difficulty, a sheet for each kind, and the targets; none where no run has such."""
    found = needed_sheets(rows)
    for title, values in titles([row.difficulty for row in rows]).items():
        curves = [row.difficulty.get(title, {}) for row in rows]
        lines = [
            [row.group.label, *(partial(curve.get(value), row, mean_and_std(curve.get(value))) for value in values)]
            for row, curve in zip(rows, curves, strict=True)
        ]
        found.append(Sheet(f"{data}: accuracy {title}", ["model", *values], lines))
    lines = [
        [
            row.group.label,
            one.asked,
            partial(one.estimate, row, mean_and_std(one.estimate)),
            NONE if one.published is None else f"{one.published:.6g}",
            one.verdict,
        ]
        for row in rows
        for one in row.targets
    ]
    headings = ["model", "target", "value", "published", "verdict"]
    return [*found, Sheet(f"{data}: targets", headings, lines, names=2)] if lines else found


def costs_sheet(data: str, rows: Sequence[Row]) -> Sheet:
    """Sizes, what training took, and where it ran, over the seeds."""
    headings = ["model", "parameters without embeddings", "state of a sequence", "training FLOPs", "tokens"]
    headings += ["wall time", "tokens/s", "peak memory", "scan backend", "precision", "device"]

    def measured(row: Row) -> list[tuple[Estimate | None, Callable[[float], Unit]]]:
        counts = [(row.flops, prefix_of), (row.tokens, prefix_of), (row.wall_seconds, time_of)]
        return [*counts, (row.tokens_per_second, prefix_of), (row.peak_memory_bytes, bytes_of)]

    lines = [
        [
            row.group.label,
            f"{row.parameters_without_embeddings:,}",
            scaled_bytes(row.state_bytes),
            *(partial(one, row, cost(one, unit)) for one, unit in measured(row)),
            row.scan_backend or NONE,
            row.precision or NONE,
            row.device,
        ]
        for row in rows
    ]
    notes = ["Means over the seeds; ±: standard deviation, left out where it rounds to zero."]
    if any(row.further_seconds is not None and row.further_seconds.mean for row in rows):
        notes.append("Wall time is without that of the further tests.")
    return Sheet(f"{data}: costs", headings, lines, notes=notes)


def differences_sheet(differences: Sequence[Difference]) -> Sheet:
    """Paired differences with their verdicts."""
    several = len({one.first.data for one in differences}) > 1
    metrics = list(dict.fromkeys(one.metric for one in differences))
    mixed = len(metrics) > 1
    lines = [
        [
            *([one.first.data] if several else []),
            *([one.metric] if mixed else []),
            one.second.label,
            one.first.label,
            str(len(one.seeds)),
            signed(one.estimate),
            interval(one.estimate),
            one.verdict,
        ]
        for one in differences
    ]
    headings = [
        *(["data"] if several else []),
        *(["of"] if mixed else []),
        "this",
        "minus that",
        "seeds",
        "difference" if mixed else f"difference in {metrics[0]}",
        "95 % interval",
        "verdict",
    ]
    note = "Paired: each seed's value minus the other's of the same seed."
    intervals = sum(one.estimate.low is not None for one in differences)
    if intervals > 1:
        note += (
            f" Each of the {intervals} intervals is a 95 % one by itself, so about one in twenty "
            "leaves the truth out by chance."
        )
    return Sheet(DIFFERENCES, headings, lines, names=2 + several + mixed, notes=[note])


def sizes_sheet(comparison: Comparison) -> Sheet:
    """Every architecture at equal parameters."""
    headings = ["data", "architecture", "parameters", "best validation loss", "test loss", "95 % interval", "read from"]
    lines = [
        [
            one.data,
            one.architecture,
            NONE if one.parameters is None else f"{one.parameters:,.0f}",
            mean(one.validation),
            mean_and_std(one.test),
            interval(one.test),
            " and ".join(one.between) or one.note,
        ]
        for one in comparison.at.sizes
    ]
    note = (
        "Between two sizes of an architecture each seed's loss is read on the straight line over the logarithm of "
        "the parameters; nothing is extrapolated."
    )
    return Sheet("At equal parameters", headings, lines, names=2, notes=[note])
