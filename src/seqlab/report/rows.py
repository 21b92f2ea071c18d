"""What a comparison says of each group: sizes, costs, results and targets over the seeds."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from seqlab.formatting import counted
from seqlab.report.difficulty import Curve, accuracies
from seqlab.report.groups import Group, grouped
from seqlab.report.runs import Run
from seqlab.report.statistics import Estimate, estimate, estimate_of_shares
from seqlab.runs.targets import Rule, bounds

COSTS = ("flops", "tokens", "wall_seconds", "further_seconds", "tokens_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class AtBudget:
    """The validation loss of a group where its curves reach a budget.

    Args:
        loss: read from each run's curve at the budget, on the straight line between the evaluations around it.
        best: the lowest of each run's evaluations up to the budget.
    """

    loss: Estimate
    best: Estimate


@dataclass(frozen=True)
class Outcome:
    """One target over the seeds of a group.

    Args:
        asked: the metric and its bounds in words.
        values: what each seed that was measured has.
        published: for comparison, if it is known.
        verdict: ``reached``, ``missed``, how many seeds did, or why there is none.
    """

    asked: str
    values: tuple[float, ...]
    published: float | None
    verdict: str

    @property
    def estimate(self) -> Estimate | None:
        """Of the mean over those seeds; ``None`` without any."""
        return estimate(self.values) if self.values else None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        group: whose.
        parameters, parameters_without_embeddings: of the model.
        active_parameters: those that a token uses, all but for a mixture of experts.
        state_bytes: what the model remembers of one sequence of the data's length; ``None`` where no run says.
        flops, tokens, wall_seconds, tokens_per_second, peak_memory_bytes: of training, over the seeds.
        further_seconds: of the further tests, which ``wall_seconds`` leaves out.
        validation: metrics at each run's best evaluation, over the seeds.
        test: metrics of the test split, over the seeds. Losses are in nats for tokens.
        scan_backend, device, precision: each different one, if the runs do not agree; ``None`` without a scan.
        chance: the accuracy of the best guess that knows nothing of the sequence; ``None`` where the data has none.
        difficulty: accuracy by what makes a probe hard; see ``seqlab.report.difficulty``.
        targets: what the runs were held against, and whether they reached it.
        at: at the budget that was asked for, if the curves reach it.
        left_out: seeds of this group that did not complete, and why.
    """

    group: Group
    parameters: int
    parameters_without_embeddings: int
    active_parameters: int
    state_bytes: int | None
    flops: Estimate | None
    tokens: Estimate | None
    wall_seconds: Estimate | None
    further_seconds: Estimate | None
    tokens_per_second: Estimate | None
    peak_memory_bytes: Estimate | None
    validation: dict[str, Estimate]
    test: dict[str, Estimate]
    scan_backend: str | None
    device: str
    precision: str
    chance: float | None
    difficulty: dict[str, Curve]
    targets: list[Outcome]
    at: AtBudget | None = None
    left_out: tuple[str, ...] = ()


def row_of(group: Group, at: AtBudget | None, left_out: Iterable[str]) -> Row:
    summaries = [run.summary for run in group.runs]
    first = summaries[0]
    return Row(
        group=group,
        parameters=first["parameters"],
        parameters_without_embeddings=first["parameters_without_embeddings"],
        active_parameters=first.get("active_parameters") or first["parameters"],
        state_bytes=max({summary.get("state_bytes") for summary in summaries} - {None}, default=None),
        **{name: over_seeds([summary.get(name) for summary in summaries]) for name in COSTS},
        validation=metrics_over_seeds([summary["best_validation"] for summary in summaries]),
        test=metrics_over_seeds([summary["test"] for summary in summaries]),
        scan_backend=distinct(summary.get("scan_backend") for summary in summaries) or None,
        device=distinct(map(device_of, group.runs)),
        precision=distinct(summary.get("precision") for summary in summaries),
        chance=chance_of(first),
        difficulty=accuracies(summaries),
        targets=outcomes(summaries),
        at=at,
        left_out=tuple(left_out),
    )


def chance_of(summary: dict[str, Any]) -> float | None:
    """What a guess would reach; a run from before ``chance`` was a value of its own says it in words."""
    if summary.get("chance") is not None:
        return summary["chance"]
    words = re.search(r", chance (\d[\d.]*(?:e-\d+)?)$", summary.get("data_description") or "")
    return float(words[1]) if words else None


def device_of(run: Run) -> str:
    return str(run.summary.get("device_name") or run.summary.get("device") or "unknown")


def distinct(names: Iterable[str | None]) -> str:
    """Different names in a row; nearly always there is one."""
    return "; ".join(dict.fromkeys(name for name in names if name))


def over_seeds(values: Iterable[Any], estimated: Callable[[Sequence[float]], Estimate] = estimate) -> Estimate | None:
    """The estimate from those values that are numbers; its ``n`` tells how many those were."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return estimated(numbers) if numbers else None


def metrics_over_seeds(metrics: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
    """An estimate for each metric that any of the runs has as a number, the loss first; an accuracy is a share."""
    estimates = {}
    for name in dict.fromkeys(["loss", *(name for one in metrics for name in one)]):
        estimated = estimate_of_shares if name.endswith("accuracy") else estimate
        estimates[name] = over_seeds([one.get(name) for one in metrics], estimated)
    return {name: value for name, value in estimates.items() if value is not None}


def outcomes(summaries: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Every target that any of a group's runs was held against."""
    targets = (target for summary in summaries for target in summary.get("targets") or [])
    return [outcome(asked, same) for asked, same in grouped(targets, bounds).items()]


def outcome(asked: str, targets: Sequence[dict[str, Any]]) -> Outcome:
    """The same target of several seeds."""
    values = tuple(target["value"] for target in targets if target["value"] is not None)
    verdicts = [target["reached"] for target in targets if target["reached"] is not None]
    if not verdicts:
        verdict = "no verdict" if values else "not measured"
    elif len(set(verdicts)) == 1 and len(verdicts) == len(targets):
        verdict = "reached" if verdicts[0] else "missed"
    else:
        verdict = f"reached by {sum(verdicts)} of {counted(len(targets), 'seed')}"
    return Outcome(asked, values, Rule(**targets[0]["rule"]).published, verdict)
