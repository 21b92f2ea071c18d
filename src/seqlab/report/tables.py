"""The tables of a comparison as rows of text, to be printed or written to files."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

from seqlab.report import formats
from seqlab.report.budgets import UNITS
from seqlab.report.compare import Comparison, Difference
from seqlab.report.difficulty import titles
from seqlab.report.fits import Fit, Gap
from seqlab.report.formats import NONE, interval, mean, mean_and_std, scaled
from seqlab.report.grids import ENOUGH, PARAMETERS, grid_of, headline, sizes_needed
from seqlab.report.groups import grouped, in_short
from seqlab.report.rows import Row
from seqlab.report.statistics import INTERVAL, Estimate

MAIN_METRICS = ("perplexity", "bits_per_byte", "accuracy", "top1_accuracy", "r2")
"""The test metrics that a table shows besides the loss; comparison.csv has all."""

INTERVAL_NOTE = f"Losses of tokens are in nats. ±: standard deviation over the seeds; in brackets: {INTERVAL}."

DIFFERENCES = "Paired differences"
TEXT = frozenset({"scan backend", "precision", "device", "verdict", "read from"})
"""Headings of columns that hold words, besides the first."""


@dataclass(frozen=True)
class Table:
    """Headings and lines of cells, whose first ``names`` columns are names; the notes are shown below."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    names: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def is_text(self) -> list[bool]:
        """For each column whether it holds words, which are aligned left, or numbers."""
        return [i < self.names or heading in TEXT for i, heading in enumerate(self.headings)]


Column = tuple[str, Callable[[Any], str]]
"""A heading, and a function from an item to its cell."""


def table_of(
    title: str, columns: Sequence[Column], items: Iterable[Any], notes: Sequence[str] = (), names: int = 1
) -> Table:
    """A table with a line for each item."""
    lines = [[cell(item) for _, cell in columns] for item in items]
    return Table(title, [heading for heading, _ in columns], lines, names, list(notes))


def over_seeds(row: Row, estimate: Estimate | None, text_of: Callable[[Any], str] = mean_and_std) -> str:
    """An estimate as text, with its number of seeds where some have no value."""
    few = estimate is not None and estimate.n < len(row.group.runs)
    return text_of(estimate) + (f" (n = {estimate.n})" if few else "")


MODEL: Column = ("model", lambda row: row.group.label)


def tables_of(comparison: Comparison) -> list[Table]:
    """For each data set its results, accuracy by difficulty, targets and costs; then the tables across groups."""
    tables = []
    for data, rows in grouped(comparison.rows, attrgetter("group.data")).items():
        tables += [results_table(data, rows, comparison), *probe_tables(data, rows), costs_table(data, rows)]
    tables += fit_tables(comparison)
    if comparison.at is not None and comparison.at.sizes:
        tables.append(sizes_table(comparison))
    if comparison.differences:
        tables.append(differences_table(comparison.differences))
    return tables


def number_of_seeds(row: Row) -> str:
    """How many seeds completed, and what became of the others."""
    count = str(len(row.group.runs))
    return f"{count} ({'; '.join(row.left_out)})" if row.left_out else count


def chance_notes(rows: Sequence[Row], name: str = "") -> list[str]:
    """The accuracy of a guess in a sentence, if the data states it; ``name`` is the data's, where there are several."""
    values = sorted({row.chance for row in rows if row.chance is not None})
    if not values:
        return []
    extent = " to ".join(f"{value:.2g}" for value in dict.fromkeys((values[0], values[-1])))
    return [f"Accuracy of a guess{f' on {name}' if name else ''} (chance): {extent}."]


def results_table(data: str, rows: Sequence[Row], comparison: Comparison) -> Table:
    """Losses and main metrics over the seeds."""
    judged, at = headline(rows), comparison.at
    others = [name for name in MAIN_METRICS if name != judged and all(name in row.test for row in rows)][:3]
    notes = [INTERVAL_NOTE, *chance_notes(rows)]
    columns = [MODEL, ("seeds", number_of_seeds), ("parameters", lambda row: f"{row.parameters:,}")]
    if any(row.active_parameters != row.parameters for row in rows):
        columns.append(("active", lambda row: f"{row.active_parameters:,}"))
        notes.append("Active: the parameters that a token uses, of experts only those that it goes to.")
    if any(row.trainable_parameters != row.parameters for row in rows):
        columns.append(("trained", lambda row: f"{row.trainable_parameters:,}"))
    if at is not None and data in at.budgets:
        budget = f"{scaled(at.budgets[data])} {UNITS[at.axis]}"
        columns += [
            (f"validation loss at {budget}", lambda row: over_seeds(row, row.at and row.at.loss)),
            ("95 % interval", lambda row: interval(row.at and row.at.loss)),
            ("best so far", lambda row: mean(row.at and row.at.best)),
        ]
        notes.append(
            f"At {budget}: each seed's validation curve is read there on the straight line between the evaluations "
            "around it; nothing is extrapolated. The other columns are of whole runs, whatever they spent."
        )
    columns += [
        (f"best validation {judged}", lambda row: mean(row.validation.get(judged))),
        (f"test {judged}", lambda row: over_seeds(row, row.test[judged])),
        ("95 % interval", lambda row: interval(row.test[judged])),
    ]
    if judged != "loss":
        columns.append(("test loss", lambda row: over_seeds(row, row.test["loss"])))
    columns += [(name.replace("_", " "), lambda row, name=name: over_seeds(row, row.test[name])) for name in others]
    return table_of(f"{data}: results", columns, rows, notes)


def probe_tables(data: str, rows: Sequence[Row]) -> list[Table]:
    """Sizes needed, accuracy by each difficulty, and targets; without the tables for which no run has values."""
    tables = needed_tables(data, rows)
    for title, values in titles([row.difficulty for row in rows]).items():
        columns = [MODEL, *(accuracy_column(title, value) for value in values)]
        tables.append(table_of(f"{data}: accuracy {title}", columns, rows))
    columns = [
        ("model", lambda line: line[0].group.label),
        ("target", lambda line: line[1].asked),
        ("value", lambda line: over_seeds(line[0], line[1].estimate)),
        ("published", lambda line: NONE if line[1].published is None else f"{line[1].published:.6g}"),
        ("verdict", lambda line: line[1].verdict),
    ]
    targets = [(row, one) for row in rows for one in row.targets]
    return [*tables, table_of(f"{data}: targets", columns, targets, names=2)] if targets else tables


def needed_tables(data: str, rows: Sequence[Row]) -> list[Table]:
    """The size that each model needs in each data setting, if both were swept; else nothing."""
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
    return [Table(f"{data}: {size} needed", ["model", *grid.titles], lines, notes=[note])]


def accuracy_column(title: str, value: str) -> Column:
    """Accuracy at one value of a difficulty."""
    return value, lambda row: over_seeds(row, row.difficulty.get(title, {}).get(value))


COST_COLUMNS = (
    ("training FLOPs", "flops", formats.prefix_of),
    ("tokens", "tokens", formats.prefix_of),
    ("wall time", "wall_seconds", formats.time_of),
    ("tokens/s", "tokens_per_second", formats.prefix_of),
    ("peak memory", "peak_memory_bytes", formats.bytes_of),
)
"""A heading, a row's attribute, and the function that chooses its unit."""


def cost_column(heading: str, name: str, unit_of: Callable[[float], formats.Unit]) -> Column:
    """A cost with its standard deviation."""
    return heading, lambda row: over_seeds(row, getattr(row, name), partial(formats.cost, unit_of=unit_of))


def costs_table(data: str, rows: Sequence[Row]) -> Table:
    """Sizes, what training took, and where it ran, over the seeds."""
    columns = [
        MODEL,
        ("parameters without embeddings", lambda row: f"{row.parameters_without_embeddings:,}"),
        ("state of a sequence", lambda row: formats.scaled_bytes(row.state_bytes)),
        *(cost_column(*one) for one in COST_COLUMNS),
        ("scan backend", lambda row: row.scan_backend or NONE),
        ("precision", lambda row: row.precision or NONE),
        ("device", lambda row: row.device),
    ]
    notes = ["Means over the seeds; ±: standard deviation, left out where it rounds to zero."]
    if any(row.further_seconds is not None and row.further_seconds.mean for row in rows):
        notes.append("Wall time is without that of the further tests.")
    return table_of(f"{data}: costs", columns, rows, notes)


def differences_table(differences: Sequence[Difference]) -> Table:
    """Paired differences with their verdicts."""
    metrics = list(dict.fromkeys(one.metric for one in differences))
    names: list[Column] = [("this", lambda one: one.second.label), ("minus that", lambda one: one.first.label)]
    if len(metrics) > 1:
        names.insert(0, ("of", lambda one: one.metric))
    if len({one.first.data for one in differences}) > 1:
        names.insert(0, ("data", lambda one: one.first.data))
    columns = [
        *names,
        ("seeds", lambda one: str(len(one.seeds))),
        ("difference" if len(metrics) > 1 else f"difference in {metrics[0]}", lambda one: formats.signed(one.estimate)),
        ("95 % interval", lambda one: interval(one.estimate)),
        ("verdict", lambda one: one.verdict),
    ]
    note = "Paired: each seed's value minus the other's of the same seed."
    intervals = sum(one.estimate.low is not None for one in differences)
    if intervals > 1:
        note += (
            f" Each of the {intervals} intervals is a 95 % one by itself, so about one in twenty "
            "leaves the truth out by chance."
        )
    return table_of(DIFFERENCES, columns, differences, [note], len(names))


def fit_tables(comparison: Comparison) -> list[Table]:
    """The fits of loss to training FLOPs, and their differences at equal FLOPs; nothing without fits."""
    fits, gaps = comparison.fits, comparison.gaps
    several = len({one.data for one in fits}) > 1
    found = [fits_table(fits, several)] if fits else []
    return [*found, gaps_table(gaps, several)] if gaps else found


def fits_table(fits: Sequence[Fit], several: bool) -> Table:
    """The power law of each architecture; ``several``: of several data sets."""

    def of_law(text_of: Callable[[Any], str]) -> Callable[[Fit], str]:
        return lambda one: text_of(one.law) if one.law is not None and one.law.is_identified else NONE

    def scale(one: Estimate) -> str:
        return f"{math.exp(one.mean):.3g} [{math.exp(one.low):.2g}, {math.exp(one.high):.2g}]"

    columns: list[Column] = [
        *([("data", lambda one: one.data)] if several else []),
        ("model", lambda one: one.label),
        ("budgets", lambda one: str(len(one.groups))),
        ("runs", lambda one: str(one.runs)),
        ("training FLOPs", lambda one: " to ".join(map(scaled, one.extent))),
        ("E", of_law(lambda law: mean(law.offset))),
        ("95 % interval", of_law(lambda law: interval(law.offset))),
        ("exponent a", of_law(lambda law: mean(law.exponent))),
        ("95 % interval", of_law(lambda law: interval(law.exponent))),
        ("C0 in FLOPs", of_law(lambda law: scale(law.log_scale))),
        ("scatter", lambda one: NONE if one.law is None else f"{100 * one.law.scatter:.2g} %"),
        ("verdict", lambda one: one.verdict),
    ]
    notes = [
        "L(C) = E + (C / C0)^-a, the Huber loss of log L over all runs at its least (Hoffmann et al. 2022); "
        "95 % intervals by a parametric bootstrap; scatter: standard deviation of runs around the curve.",
        "Of several sizes or settings of a model, those are fitted that no other beats on validation at equal FLOPs.",
    ]
    return table_of("Test loss against training FLOPs", columns, fits, notes, 2 if several else 1)


def gaps_table(gaps: Sequence[Gap], several: bool) -> Table:
    """Pairs of fitted curves at equal FLOPs; ``several``: of several data sets."""

    def at(place: int) -> Callable[[Gap], str]:
        def cell(one: Gap) -> str:
            difference = one.differences[place]
            return f"{formats.signed(difference)} {interval(difference)} at {scaled(one.places[place])}"

        return cell

    def crossing(one: Gap) -> str:
        ends = ("beyond" if end is None else scaled(end) for end in one.equal)
        return NONE if one.crossing is None else f"{scaled(one.crossing)} [{', '.join(ends)}]"

    asked = any(len(one.places) > 2 for one in gaps)
    columns: list[Column] = [
        *([("data", lambda one: one.first.data)] if several else []),
        ("this", lambda one: one.second.label),
        ("minus that", lambda one: one.first.label),
        ("at the least common FLOPs", at(0)),
        *([("at the budget", lambda one: at(1)(one) if len(one.places) > 2 else NONE)] if asked else []),
        ("at the greatest", at(-1)),
        ("equal at", crossing),
        ("verdict", lambda one: one.verdict),
    ]
    note = (
        "Differences of the fitted test losses with 95 % intervals, where both models were measured. Equal at: where "
        "the curves cross, and around it the FLOPs at which no difference is shown. This and the verdict are by a band "
        "that holds over the whole range in 95 cases of 100."
    )
    return table_of("Fits at equal training FLOPs", columns, gaps, [note], 3 if several else 2)


def sizes_table(comparison: Comparison) -> Table:
    """Every architecture at equal parameters."""
    columns = [
        ("data", lambda one: one.data),
        ("architecture", lambda one: one.architecture),
        ("parameters", lambda one: NONE if one.parameters is None else f"{one.parameters:,.0f}"),
        ("best validation loss", lambda one: mean(one.validation)),
        ("test loss", lambda one: mean_and_std(one.test)),
        ("95 % interval", lambda one: interval(one.test)),
        ("read from", lambda one: " and ".join(one.between) or one.note),
    ]
    note = (
        "Between two sizes of an architecture each seed's loss is read on the straight line over the logarithm of "
        "the parameters; nothing is extrapolated."
    )
    return table_of("At equal parameters", columns, comparison.at.sizes, [note], 2)
