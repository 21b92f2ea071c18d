"""From runs to a comparison: groups with their rows, paired differences, and whatever is not alike."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from seqlab.report.budgets import UNITS, At, Axis, at_budget, read_at
from seqlab.report.figures import scaled
from seqlab.report.grids import headline, in_order
from seqlab.report.groups import Group, group, in_json, repeated, with_effect
from seqlab.report.rows import Row, device_of, row_of
from seqlab.report.runs import Run, Skipped
from seqlab.report.sizes import at_parameters
from seqlab.report.statistics import Estimate, estimate

MOST_IN_PAIRS = 20
"""Groups of the same data up to which every pair is compared; of more, each with the best by validation."""


@dataclass(frozen=True)
class Difference:
    """Two groups on the seeds that both have.

    Args:
        first, second: validation prefers ``first``.
        metric: of what.
        seeds: those that both have.
        estimate: of ``second`` minus ``first``, over the pairs.
        more_is_better: of accuracy it is, of losses less.
    """

    first: Group
    second: Group
    metric: str
    seeds: tuple[int, ...]
    estimate: Estimate
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.estimate.low is None:
            return "one seed: no interval"
        if self.estimate.low <= 0 <= self.estimate.high:
            return "no difference shown"
        second_is_more = self.estimate.mean > 0
        return f"{(self.second if second_is_more == self.more_is_better else self.first).label} is better"


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables, the pictures and the page show.

    Args:
        groups: in the order of data, model and settings.
        rows: one for each group; by data and its content, then the best on validation first, in the metric that the
            data is judged by (with a budget the lowest loss there).
        skipped: folders that take no part, and why.
        differences: paired, within the same data.
        mismatches: what runs side by side differ in: by its name, pairs of a value and the labels that have it.
        at: the equal budget, if one was asked for.
    """

    groups: list[Group]
    rows: list[Row]
    skipped: list[Skipped]
    differences: list[Difference]
    mismatches: dict[str, list[tuple[str, list[str]]]]
    at: At | None = None


def compare(
    runs: Sequence[Run], skipped: Sequence[Skipped] = (), *, at: tuple[Axis, float | None] | None = None
) -> Comparison:
    """Put runs beside each other.

    Args:
        runs: completed ones, of any data; only those of the same data are held against each other.
        skipped: what else was found.
        at: axis, and budget or ``None`` for the largest common one.
    """
    groups = group(runs)
    readings = {}
    budget = None
    if at is not None and at[0] == "params":
        budget = At("params", {}, sizes=at_parameters(groups, at[1]))
    elif at is not None:
        budget, readings = at_budget(groups, *at)
    left_out = unfinished_seeds(skipped)
    rows = [row_of(one, readings.get((one.data, one.label)), seeds_left_out(one, left_out)) for one in groups]
    metrics = headlines(rows)
    contents = places_of_contents(groups)
    rows.sort(key=lambda row: (contents[content_of(row.group)], *row_order(row, metrics[row.group.data])))
    older = [
        Skipped(run.folder, f"seed {run.summary['seed']} again: {newer.folder} is newer")
        for run, newer in repeated(runs)
    ]
    return Comparison(groups, rows, [*skipped, *older], differences_of(rows, budget), mismatches_of(groups), budget)


def headlines(rows: Sequence[Row]) -> dict[str, str]:
    """By data, the metric that it is judged by."""
    names = dict.fromkeys(row.group.data for row in rows)
    return {data: headline([row for row in rows if row.group.data == data]) for data in names}


def content_of(group: Group) -> tuple[str, Any]:
    """Equal for groups of the same data down to the last example: only those stand against each other."""
    return group.data, group.runs[0].summary.get("data_fingerprint")


def places_of_contents(groups: Sequence[Group]) -> dict[tuple[str, Any], int]:
    """Data sets by name, and one's contents by the settings that tell them apart: length 64 before 128."""
    settings: dict[tuple[str, Any], list[Any]] = {}
    for one in groups:
        values = [in_order(value) for key, value in one.settings.items() if key.startswith("data.")]
        settings[content_of(one)] = min(settings.get(content_of(one), values), values)
    places = sorted(settings, key=lambda content: (content[0], settings[content], str(content[1])))
    return {content: place for place, content in enumerate(places)}


def row_order(row: Row, metric: str) -> tuple[Any, ...]:
    at_loss = row.at.loss.mean if row.at is not None else float("inf")
    return at_loss, *validation_order(row, metric), row.group.label


def validation_order(row: Row, metric: str) -> tuple[float, float]:
    """Less for what validation prefers; between equals in the metric the loss decides."""
    judged, loss = row.validation.get(metric), row.validation["loss"].mean
    return (loss if metric == "loss" else float("inf") if judged is None else -judged.mean), loss


def config_key(run: Run | Skipped) -> str:
    """Equal for the runs of a group, completed or not."""
    return in_json([run.summary.get("model"), run.summary.get("data"), sorted(with_effect(run.config).items())])


def unfinished_seeds(skipped: Iterable[Skipped]) -> dict[str, dict[int, str]]:
    """What became of the seeds that did not complete, by group: a mean over the rest is not the whole truth."""
    seeds: dict[str, dict[int, str]] = defaultdict(dict)
    for one in skipped:
        if one.config and isinstance(seed := one.summary.get("seed"), int):
            seeds[config_key(one)][seed] = one.why.partition(":")[0]
    return seeds


def seeds_left_out(group: Group, unfinished: dict[str, dict[int, str]]) -> list[str]:
    """The seeds of a group that never completed."""
    if not unfinished:
        return []
    seeds = unfinished.get(config_key(group.runs[0]), {})
    return [f"seed {seed} {why}" for seed, why in sorted(seeds.items()) if seed not in group.seeds]


def differences_of(rows: Sequence[Row], at: At | None) -> list[Difference]:
    """Paired differences between groups of the same data with a seed in common: on test, and at the budget."""
    metrics = headlines(rows)
    by_data: dict[tuple[str, Any], list[Row]] = defaultdict(list)
    for row in rows:
        by_data[content_of(row.group)].append(row)
    found: list[Difference | None] = []
    for (data, _), same in by_data.items():
        metric = metrics[data]
        groups = [row.group for row in sorted(same, key=lambda row: validation_order(row, metric))]
        pairs = list(combinations(groups, 2))
        if len(groups) > MOST_IN_PAIRS:
            pairs = [(groups[0], other) for other in groups[1:]]
        found += [
            difference(*pair, f"test {metric}", test_value(metric), more_is_better=metric != "loss") for pair in pairs
        ]
        if at is not None and data in at.budgets:
            name = f"validation loss at {scaled(at.budgets[data])} {UNITS[at.axis]}"
            found += [difference(*pair, name, loss_at(at.axis, at.budgets[data])) for pair in pairs]
    return [one for one in found if one is not None]


def test_value(metric: str) -> Callable[[Run], float | None]:
    return lambda run: run.summary["test"].get(metric)


def loss_at(axis: str, budget: float) -> Callable[[Run], float | None]:
    def read(run: Run) -> float | None:
        reading = read_at(run, axis, budget)
        return None if reading is None else reading[0]

    return read


def difference(
    first: Group, second: Group, metric: str, value: Callable[[Run], float | None], *, more_is_better: bool = False
) -> Difference | None:
    """Two groups on the seeds that both have a value for, ``None`` without such a seed."""
    values = [
        {run.summary["seed"]: found for run in one.runs if (found := value(run)) is not None} for one in (first, second)
    ]
    seeds = tuple(sorted(set(values[0]) & set(values[1])))
    if not seeds:
        return None
    found = estimate([values[1][seed] - values[0][seed] for seed in seeds])
    return Difference(first, second, metric, seeds, found, more_is_better)


CONTENT, SPLIT = "data content (fingerprint)", "split and windows"
FACTS: dict[str, Callable[[Run], str]] = {
    CONTENT: lambda run: str(run.summary.get("data_fingerprint") or "unknown"),
    SPLIT: lambda run: str(run.summary.get("data_description") or "unknown"),
    "tokens seen": lambda run: f"{run.summary['tokens']:,.0f}",
    "precision": lambda run: str(run.summary.get("precision") or "unknown"),
    "device": device_of,
}
"""What has to be alike, besides the data, for losses and costs to stand side by side."""


def mismatches_of(groups: Sequence[Group]) -> dict[str, list[tuple[str, list[str]]]]:
    """What differs between runs that a table puts side by side, with who has which value.

    A difference within a group names the seeds; with several data sets each is looked at for itself.
    """
    by_data: dict[str, list[Group]] = defaultdict(list)
    for one in groups:
        by_data[one.data].append(one)
    found = {}
    if len(by_data) > 1:
        found["data"] = [(data, [one.label for one in same]) for data, same in by_data.items()]
    for data, same in by_data.items():
        differing = {name: holders for name, fact in FACTS.items() if len(holders := holders_of(same, fact)) > 1}
        if alike(differing.get(CONTENT), differing.get(SPLIT)):
            del differing[CONTENT]  # a line of marks that says what the next says in words
        for name, holders in differing.items():
            found[name if len(by_data) == 1 else f"{name} of {data}"] = list(holders.items())
    return found


def alike(first: dict[str, list[str]] | None, second: dict[str, list[str]] | None) -> bool:
    """Whether two facts divide the same runs in the same way."""
    return first is not None and second is not None and sorted(first.values()) == sorted(second.values())


def holders_of(groups: Sequence[Group], fact: Callable[[Run], str]) -> dict[str, list[str]]:
    """Who has which value: labels, with the seeds where a group does not agree."""
    holders: dict[str, list[str]] = defaultdict(list)
    for one in groups:
        seeds: dict[str, list[str]] = defaultdict(list)
        for run in one.runs:
            seeds[fact(run)].append(str(run.summary["seed"]))
        for value, some in seeds.items():
            holders[value].append(one.label if len(seeds) == 1 else f"{one.label} (seed {', '.join(some)})")
    return dict(sorted(holders.items(), key=lambda item: -len(item[1])))
