"""Targets over the seeds of a group: how many of them reached what was asked."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seqlab.formatting import counted
from seqlab.report.statistics import Estimate, estimate
from seqlab.runs.targets import Rule, Summary, bounds


@dataclass(frozen=True)
class Outcome:
    """One target over the seeds of a group.

    Args:
        asked: the figure and its bounds in words.
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


def outcomes(summaries: Sequence[Summary]) -> list[Outcome]:
    """Every target that any of a group's runs was held against."""
    judged_by_seed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for summary in summaries:
        for target in summary.get("targets") or []:
            judged_by_seed[bounds(target)].append(target)
    return [outcome(asked, targets) for asked, targets in judged_by_seed.items()]


def outcome(asked: str, targets: Sequence[dict[str, Any]]) -> Outcome:
    """The same target of several seeds."""
    values = tuple(target["value"] for target in targets if target["value"] is not None)
    verdicts = [target["reached"] for target in targets if target["reached"] is not None]
    if not verdicts:
        word = "no verdict" if values else "not measured"
    elif len(set(verdicts)) == 1 and len(verdicts) == len(targets):
        word = "reached" if verdicts[0] else "missed"
    else:
        word = f"reached by {sum(verdicts)} of {counted(len(targets), 'seed')}"
    return Outcome(asked, values, Rule(**targets[0]["rule"]).published, word)
