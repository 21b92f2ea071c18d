"""From runs to a comparison: groups with their rows, paired differences, and mismatches between runs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from operator import attrgetter
from typing import Any

from seqlab.formatting import counted
from seqlab.report.budgets import UNITS, At, at_budget, at_parameters, read_at
from seqlab.report.fits import Fit, Gap, fits_of, gaps_of
from seqlab.report.formats import scaled
from seqlab.report.grids import headline
from seqlab.report.groups import Group, group, grouped, in_json, in_order, with_effect
from seqlab.report.rows import Row, device_of, row_of
from seqlab.report.runs import Run, Skipped
from seqlab.report.statistics import Estimate, estimate

MOST_IN_PAIRS = 20
"""The most groups of the same data of which every pair is compared; of more, each is compared with the best one."""

ONE_SEED = "one seed: no interval"
"""The verdict on a difference of a single pair."""


@dataclass(frozen=True)
class Difference:
    """The paired difference between two groups, over the seeds that both have.

    Args:
        first, second: validation prefers ``first``.
        metric: its name.
        seeds: those that both have.
        estimate: of ``second`` minus ``first``, over the pairs.
        more_is_better: true for accuracy, false for losses.
    """

    first: Group
    second: Group
    metric: str
    seeds: tuple[int, ...]
    estimate: Estimate
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """What the interval shows."""
        if self.estimate.low is None:
            return ONE_SEED
        if self.estimate.low <= 0 <= self.estimate.high:
            return "no difference shown"
        second_is_more = self.estimate.mean > 0
        return f"{(self.second if second_is_more == self.more_is_better else self.first).label} is better"


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables, the pictures and the page show.

    Args:
        groups: in the order of data, model and settings.
        rows: one for each group, by data and its content. Within these the best on validation is first, in the metric
            that the data is judged by; with a budget the lowest loss there.
        skipped: folders that are left out, and why.
        differences: paired, within the same data.
        mismatches: how runs side by side differ: by name, pairs of a value and the labels that have it.
        at: the equal budget, if one was asked for.
        fits: of loss to training FLOPs, for each architecture with several budgets.
        gaps: between two fits, within the same data.
    """

    groups: list[Group]
    rows: list[Row]
    skipped: list[Skipped]
    differences: list[Difference]
    mismatches: dict[str, list[tuple[str, list[str]]]]
    at: At | None = None
    fits: list[Fit] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


def compare(
    runs: Sequence[Run], skipped: Sequence[Skipped] = (), *, at: tuple[str, float | None] | None = None
) -> Comparison:
    """Group runs and compare the groups.

    Args:
        runs: completed ones, of any data; only those of the same data are compared with each other.
        skipped: folders that are left out.
        at: axis, and budget or ``None`` for the largest common one.
    """
    groups = group(runs)
    budget, readings = None, {}
    if at is not None and at[0] == "params":
        budget = At("params", sizes=at_parameters(groups, at[1]))
    elif at is not None:
        budget, readings = at_budget(groups, *at)
    left_out = unfinished_seeds(skipped)
    rows = [row_of(one, readings.get((one.data, one.label)), seeds_left_out(one, left_out)) for one in groups]
    metrics, places = headlines(rows), places_of_contents(groups)

    def place(row: Row) -> tuple[Any, ...]:
        at_loss = row.at.loss.mean if row.at is not None else float("inf")
        return places[content_of(row.group)], at_loss, *validation_order(row, metrics), row.group.label

    rows.sort(key=place)
    repeated = [
        Skipped(older.folder, f"seed {older.summary['seed']} again: {newer.folder} is newer")
        for one in groups
        for older, newer in one.repeated
    ]
    differences = differences_of(rows, metrics, budget)
    fits, gaps = fits_and_gaps(groups, budget)
    return Comparison(groups, rows, [*skipped, *repeated], differences, mismatches_of(groups), budget, fits, gaps)


def fits_and_gaps(groups: Sequence[Group], at: At | None) -> tuple[list[Fit], list[Gap]]:
    """Every fit of loss to training FLOPs, and every pair of them within the same data."""
    fits, gaps = [], []
    for (data, _), same in grouped(groups, content_of).items():
        found = fits_of(same)
        fits += found
        gaps += gaps_of(found, at.budgets.get(data) if at is not None and at.axis == "flops" else None)
    return fits, gaps


def headlines(rows: Sequence[Row]) -> dict[str, str]:
    """The metric that each data set is judged by."""
    return {data: headline(same) for data, same in grouped(rows, attrgetter("group.data")).items()}


def content_of(group: Group) -> tuple[str, Any]:
    """Equal for groups of the same data down to the last example: only those are compared with each other."""
    return group.data, group.runs[0].summary.get("data_fingerprint")


def places_of_contents(groups: Sequence[Group]) -> dict[tuple[str, Any], int]:
    """The order of data: by name, and contents of the same name by their settings, such as length 64 before 128."""
    settings: dict[tuple[str, Any], list[Any]] = {}
    for one in groups:
        values = [in_order(value) for key, value in one.settings.items() if key.startswith("data.")]
        settings[content_of(one)] = min(settings.get(content_of(one), values), values)
    ordered = sorted(settings, key=lambda content: (content[0], settings[content], str(content[1])))
    return {content: place for place, content in enumerate(ordered)}


def validation_order(row: Row, metrics: dict[str, str]) -> tuple[float, float]:
    """A sort key, less for what validation prefers; where the metric is equal the loss decides."""
    metric = metrics[row.group.data]
    judged, loss = row.validation.get(metric), row.validation["loss"].mean
    return (loss if metric == "loss" else float("inf") if judged is None else -judged.mean), loss


def config_key(run: Run | Skipped) -> str:
    """Equal for the runs of a group, completed or not."""
    return in_json([run.summary.get("model"), run.summary.get("data"), sorted(with_effect(run.config).items())])


def unfinished_seeds(skipped: Iterable[Skipped]) -> dict[str, dict[int, str]]:
    """What became of the seeds that did not complete, by group: a mean over the others alone can mislead."""
    seeds: dict[str, dict[int, str]] = defaultdict(dict)
    for one in skipped:
        if one.config and isinstance(seed := one.summary.get("seed"), int):
            seeds[config_key(one)][seed] = one.why.partition(":")[0]
    return seeds


def seeds_left_out(group: Group, unfinished: dict[str, dict[int, str]]) -> list[str]:
    """The seeds of a group that never completed, with what became of them."""
    seeds = unfinished.get(config_key(group.runs[0]), {}) if unfinished else {}
    return [f"seed {seed} {why}" for seed, why in sorted(seeds.items()) if seed not in group.seeds]


def differences_of(rows: Sequence[Row], metrics: dict[str, str], at: At | None) -> list[Difference]:
    """Paired differences between groups of the same data with a seed in common: on test, and at the budget."""
    found = []
    for (data, _), same in grouped(rows, lambda row: content_of(row.group)).items():
        best, *others = groups = [row.group for row in sorted(same, key=lambda row: validation_order(row, metrics))]
        pairs = list(combinations(groups, 2)) if len(groups) <= MOST_IN_PAIRS else [(best, other) for other in others]
        metric = metrics[data]
        measures = [(f"test {metric}", partial(test_metric, name=metric), metric != "loss")]
        if at is not None and data in at.budgets:
            name = f"validation loss at {scaled(at.budgets[data])} {UNITS[at.axis]}"
            measures.append((name, partial(loss_at, axis=at.axis, budget=at.budgets[data]), False))
        found += [difference(first, second, *measure) for measure in measures for first, second in pairs]
    return [one for one in found if one is not None]


def test_metric(run: Run, name: str) -> float | None:
    """A metric of the test split; ``None`` where the run lacks it."""
    return run.summary["test"].get(name)


def loss_at(run: Run, axis: str, budget: float) -> float | None:
    """Validation loss at a budget; ``None`` where it cannot be read."""
    reading = read_at(run, axis, budget)
    return None if reading is None else reading[0]


def difference(
    first: Group, second: Group, metric: str, value_of: Callable[[Run], float | None], more_is_better: bool
) -> Difference | None:
    """The paired difference of two groups over the seeds that have a value in both; ``None`` without such a seed."""
    one, other = (
        {run.summary["seed"]: value for run in group.runs if (value := value_of(run)) is not None}
        for group in (first, second)
    )
    seeds = tuple(sorted(one.keys() & other.keys()))
    if not seeds:
        return None
    estimated = estimate([other[seed] - one[seed] for seed in seeds])
    return Difference(first, second, metric, seeds, estimated, more_is_better)


CONTENT, SPLIT = "data content (fingerprint)", "data as described"
FACTS: dict[str, Callable[[Run], str]] = {
    CONTENT: lambda run: str(run.summary.get("data_fingerprint") or "unknown"),
    SPLIT: lambda run: str(run.summary.get("data_description") or "unknown"),
    "tokens seen": lambda run: f"{run.summary['tokens']:,.0f}",
    "precision": lambda run: str(run.summary.get("precision") or "unknown"),
    "device": device_of,
}
"""What has to be equal, besides the data's name, for losses and costs to be comparable."""


def mismatches_of(groups: Sequence[Group]) -> dict[str, list[tuple[str, list[str]]]]:
    """How runs that a table puts side by side differ, with the labels that have each value.

    Data sets are looked at one by one. Where the runs of one group differ, the labels name the seeds.
    """
    by_data = grouped(groups, attrgetter("data"))
    found = {}
    if len(by_data) > 1:
        found["data"] = [(data, [one.label for one in same]) for data, same in by_data.items()]
    for data, same in by_data.items():
        differing = {name: holders for name, fact in FACTS.items() if len(holders := holders_of(same, fact)) > 1}
        parts = [sorted(differing[name].values()) for name in (CONTENT, SPLIT) if name in differing]
        if len(parts) == 2 and parts[0] == parts[1]:
            del differing[CONTENT]  # the description says in words what the fingerprints say
        for name, holders in differing.items():
            found[name if len(by_data) == 1 else f"{name} of {data}"] = list(holders.items())
    return found


def holders_of(groups: Sequence[Group], fact: Callable[[Run], str]) -> dict[str, list[str]]:
    """The labels that have each value, the most frequent value first, with seeds where the runs of a group differ."""
    holders: dict[str, list[str]] = defaultdict(list)
    for one in groups:
        by_value = grouped(one.runs, fact)
        for value, runs in by_value.items():
            seeds = ", ".join(str(run.summary["seed"]) for run in runs)
            holders[value].append(one.label if len(by_value) == 1 else f"{one.label} (seed {seeds})")
    return dict(sorted(holders.items(), key=lambda item: -len(item[1])))


def warnings_of(comparison: Comparison) -> list[str]:
    """The lines above the tables: one for each mismatch, and what cannot be read at the budget."""
    return mismatches_in_words(comparison) + ([] if comparison.at is None else comparison.at.notes)


def mismatches_in_words(comparison: Comparison, most: int = 8) -> list[str]:
    """A line for each mismatch: its values, at most ``most``, and the labels that have each."""
    lines = []
    for name, holders in comparison.mismatches.items():
        each = max(2, 12 // len(holders))
        values = "; ".join(f"{value}: {first_few(labels, each, ' / ')}" for value, labels in holders[:most])
        rest = f"; and {counted(len(holders) - most, 'more value')}" if len(holders) > most else ""
        lines.append(f"The runs differ in {name}. {values}{rest}")
    return lines


def first_few(names: Sequence[object], most: int, separator: str) -> str:
    """Names in a line; of many the first, and the number of the others."""
    rest = len(names) - most
    return separator.join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")
