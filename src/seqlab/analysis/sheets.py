"""The tables of a comparison as text in rows, whatever they are printed or written with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from seqlab.analysis.budgets import UNITS
from seqlab.analysis.compare import Comparison, Difference
from seqlab.analysis.difficulty import titles
from seqlab.analysis.figures import NONE, duration, interval, mean, mean_and_std, scaled, scaled_bytes, signed
from seqlab.analysis.grids import ENOUGH, PARAMETERS, grid_of, headline, sizes_needed
from seqlab.analysis.groups import in_short
from seqlab.analysis.rows import Row
from seqlab.analysis.statistics import Estimate

MAIN_METRICS = ("perplexity", "accuracy", "top1_accuracy", "r2")
"""Of the test metrics besides the loss, those that a table shows; a file of all is written too."""

INTERVAL_NOTE = (
    "Losses of tokens are in nats. ±: standard deviation over the seeds. Interval: 95 %, studentised bootstrap of the "
    "mean, with fewer than eight seeds drawn from a normal law: it assumes that seeds vary symmetrically."
)

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


def results_sheet(data: str, rows: Sequence[Row], comparison: Comparison) -> Sheet:
    """Losses and main metrics over the seeds."""
    metrics = [name for name in MAIN_METRICS if all(name in row.test for row in rows)][:2]
    headings = ["model", "seeds", "parameters", "best validation loss", "test loss", "95 % interval", *metrics]
    active = any(row.active_parameters != row.parameters for row in rows)
    lines = [
        [
            row.group.label,
            number_of_seeds(row),
            f"{row.parameters:,}",
            mean(row.validation["loss"]),
            partial(row.test["loss"], row, mean_and_std(row.test["loss"])),
            interval(row.test["loss"]),
            *(partial(row.test[name], row, mean_and_std(row.test[name])) for name in metrics),
        ]
        for row in rows
    ]
    notes = [INTERVAL_NOTE]
    if active:
        headings.insert(3, "active")
        for line, row in zip(lines, rows, strict=True):
            line.insert(3, f"{row.active_parameters:,}")
        notes.append("Active: the parameters that a token uses, of experts only those that it goes to.")
    at = comparison.at
    if at is not None and data in at.budgets:
        budget = f"{scaled(at.budgets[data])} {UNITS[at.axis]}"
        place = headings.index("best validation loss")
        headings[place:place] = [f"validation loss at {budget}", "95 % interval", "best so far"]
        for line, row in zip(lines, rows, strict=True):
            loss, best = (None, None) if row.at is None else (row.at.loss, row.at.best)
            line[place:place] = [partial(loss, row, mean_and_std(loss)), interval(loss), mean(best)]
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
    """Sizes, what training took, and where it ran; means over the seeds."""
    headings = [
        "model",
        "parameters without embeddings",
        "state of a sequence",
        "training FLOPs",
        "tokens",
        "wall time",
    ]
    headings += ["tokens/s", "peak memory", "scan backend", "precision", "device"]

    def of(estimate: Estimate | None) -> float | None:
        return None if estimate is None else estimate.mean

    lines = [
        [
            row.group.label,
            f"{row.parameters_without_embeddings:,}",
            scaled_bytes(row.state_bytes),
            scaled(of(row.flops)),
            scaled(of(row.tokens)),
            duration(of(row.wall_seconds)),
            scaled(of(row.tokens_per_second)),
            scaled_bytes(of(row.peak_memory_bytes)),
            row.scan_backend or NONE,
            row.precision or NONE,
            row.device,
        ]
        for row in rows
    ]
    notes = ["Means over the seeds."]
    if any(of(row.further_seconds) for row in rows):
        notes.append("Wall time is without that of the further tests.")
    return Sheet(f"{data}: costs", headings, lines, notes=notes)


def differences_sheet(differences: Sequence[Difference]) -> Sheet:
    """Paired differences with their verdicts."""
    several = len({one.first.data for one in differences}) > 1
    lines = [
        [
            *([one.first.data] if several else []),
            one.metric,
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
        "of",
        "this",
        "minus that",
        "seeds",
        "difference",
        "95 % interval",
        "verdict",
    ]
    note = "Paired: each seed's value minus the other's of the same seed."
    if len(differences) > 1:
        note += (
            f" Each of the {len(differences)} intervals is a 95 % one by itself, so about one in twenty "
            "leaves the truth out by chance."
        )
    return Sheet(DIFFERENCES, headings, lines, names=4 if several else 3, notes=[note])


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


def warnings_of(comparison: Comparison) -> list[str]:
    """What is not alike, a line for each thing, and what cannot be read at the budget: they stand above the tables."""
    lines = mismatches_in_words(comparison)
    return lines + ([] if comparison.at is None else comparison.at.notes)


def mismatches_in_words(comparison: Comparison, most: int = 8) -> list[str]:
    """A line for each thing in which runs side by side differ: the values, and who has which."""
    lines = []
    for name, holders in comparison.mismatches.items():
        each = max(2, 12 // len(holders))
        values = "; ".join(f"{value}: {in_row(labels, each)}" for value, labels in holders[:most])
        rest = f"; and {len(holders) - most} more values" if len(holders) > most else ""
        lines.append(f"Not alike: {name}. {values}{rest}")
    return lines


def in_row(labels: Sequence[str], most: int) -> str:
    """Labels in a row, which have commas themselves; of many the first."""
    rest = len(labels) - most
    return " / ".join(labels[:most]) + (f" and {rest} more" if rest > 0 else "")
