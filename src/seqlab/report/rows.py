"""The row of each group in a comparison: sizes, costs, results and targets over the seeds."""

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
    """The validation loss of a group at a budget.

    Args:
        loss: each run's curve at the budget, interpolated between the evaluations around it.
        best: each run's lowest loss up to the budget.
    """

    loss: Estimate
    best: Estimate


@dataclass(frozen=True)
class Outcome:
    """One target over the seeds of a group.

    Args:
        asked: the metric and its bounds in words.
        values: of the seeds that were measured.
        published: the published figure, if it is known.
        verdict: ``reached``, ``missed``, how many seeds reached it, or why there is no verdict.
    """

    asked: str
    values: tuple[float, ...]
    published: float | None
    verdict: str

    @property
    def estimate(self) -> Estimate | None:
        """The mean over those seeds; ``None`` without any."""
        return estimate(self.values) if self.values else None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        group: which.
        parameters, parameters_without_embeddings: of the model.
        active_parameters: those that a token uses; fewer than all in a mixture of experts.
        trainable_parameters: those that training changes; with LoRA (``trainer.lora``) its factors' numbers.
        state_bytes: the state of one sequence of the data's length; ``None`` where no run recorded it.
        flops, tokens, wall_seconds, tokens_per_second, peak_memory_bytes: of training, over the seeds.
        further_seconds: of the further tests, which ``wall_seconds`` does not include.
        validation: metrics at each run's best evaluation, over the seeds.
        test: metrics of the test split, over the seeds. Losses are in nats for tokens.
        scan_backend, device, precision: each different one, if the runs differ; ``None`` without a scan.
        chance: the accuracy of the best guess without reading the sequence; ``None`` where the data has none.
        difficulty: accuracy by the difficulty of a probe; see ``seqlab.report.difficulty``.
        targets: the runs' targets, and whether they reached them.
        at: losses at the budget that was asked for, if the curves reach it.
        left_out: seeds of this group that did not complete, and why.
    """

    group: Group
    parameters: int
    parameters_without_embeddings: int
    active_parameters: int
    trainable_parameters: int
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
    """The row of a group."""
    summaries = [run.summary for run in group.runs]
    first = summaries[0]
    return Row(
        group=group,
        parameters=first["parameters"],
        parameters_without_embeddings=first["parameters_without_embeddings"],
        active_parameters=first.get("active_parameters") or first["parameters"],
        trainable_parameters=first.get("trainable_parameters") or first["parameters"],
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
    """The accuracy of a guess; runs from before the summary had ``chance`` state it in the data's description."""
    if summary.get("chance") is not None:
        return summary["chance"]
    words = re.search(r", chance (\d[\d.]*(?:e-\d+)?)$", summary.get("data_description") or "")
    return float(words[1]) if words else None


def device_of(run: Run) -> str:
    """The name of a run's device."""
    return str(run.summary.get("device_name") or run.summary.get("device") or "unknown")


def distinct(names: Iterable[str | None]) -> str:
    """The different names, separated by semicolons."""
    return "; ".join(dict.fromkeys(name for name in names if name))


def over_seeds(values: Iterable[Any], estimated: Callable[[Sequence[float]], Estimate] = estimate) -> Estimate | None:
    """The estimate from those values that are finite numbers; its ``n`` says how many these are."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return estimated(numbers) if numbers else None


def metrics_over_seeds(metrics: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
    """An estimate for each metric that any of the runs has as a number, the loss first; accuracies are shares."""
    estimates = {}
    for name in dict.fromkeys(["loss", *(name for one in metrics for name in one)]):
        estimated = estimate_of_shares if name.endswith("accuracy") else estimate
        estimates[name] = over_seeds([one.get(name) for one in metrics], estimated)
    return {name: value for name, value in estimates.items() if value is not None}


def outcomes(summaries: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Every target of any of a group's runs."""
    targets = (target for summary in summaries for target in summary.get("targets") or [])
    return [outcome(asked, same) for asked, same in grouped(targets, bounds).items()]


def outcome(asked: str, targets: Sequence[dict[str, Any]]) -> Outcome:
    """One target of several seeds."""
    values = tuple(target["value"] for target in targets if target["value"] is not None)
    verdicts = [target["reached"] for target in targets if target["reached"] is not None]
    if not verdicts:
        verdict = "no verdict" if values else "not measured"
    elif len(set(verdicts)) == 1 and len(verdicts) == len(targets):
        verdict = "reached" if verdicts[0] else "missed"
    else:
        verdict = f"reached by {sum(verdicts)} of {counted(len(targets), 'seed')}"
    return Outcome(asked, values, Rule(**targets[0]["rule"]).published, verdict)
