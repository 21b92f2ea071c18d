"""The figures that an experiment is to reach: ``target`` in its YAML, checked at the start and judged at the end.

A target is a path in ``summary.json`` and a rule::

    target:
      test.accuracy: {at_least: 0.998, published: 0.998}
      further_tests.length=1048576.accuracy: {at_least: 1.0, models: [mamba]}

For a model that ``models`` does not name, and for a rule with the ``published`` figure alone, there is a value and no
verdict. A missed target changes nothing in how a run ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seqlab.config.options import model_options
from seqlab.errors import UserError, nearest

Summary = dict[str, Any]

PARTS = ("test", "best_validation", "further_tests", "test_slices")
NUMBERS = (
    "best_validation_loss",
    "steps",
    "tokens",
    "flops",
    "seconds",
    "wall_seconds",
    "further_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "data_wait_share",
    "parameters",
    "parameters_without_embeddings",
    "active_parameters",
    "state_bytes",
)
"""What a path may begin with: mappings of figures, and figures."""

SLICED = ("loss", "accuracy", "count")
"""What a slice of the test split has."""

EXAMPLE = "For example target: {test.accuracy: {at_least: 0.99}}"


@dataclass(frozen=True)
class Rule:
    """What a figure is held against; bounds are inclusive."""

    at_least: float | None = None
    at_most: float | None = None
    published: float | None = None
    models: list[str] | None = None


def check_targets(targets: Any, name: str) -> None:
    """Refuse targets that could never be judged, before anything is built.

    Args:
        targets: what the configuration says of them.
        name: the run's, which is its model's unless it was given another.
    """
    if targets is None:
        return
    if not isinstance(targets, dict):
        raise UserError("target", targets, "must be a mapping of a path in summary.json to a rule", EXAMPLE)
    for path, rule in targets.items():
        head = str(path).partition(".")[0]
        if (head not in PARTS or head == path) and path not in NUMBERS:
            known = ", ".join([*(f"{part}.<name>" for part in PARTS), *NUMBERS])
            rule_of_paths = "is no path in summary.json that a target can have"
            raise UserError(f"target.{path}", rule, rule_of_paths, f"There are: {known}")
        check_rule(rule, f"target.{path}")
    check_models(targets, name)


def check_models(targets: dict[str, Any], name: str) -> None:
    """Refuse a target for a model that there is not, unless runs have a name of their own (``name=...``)."""
    options = model_options()
    for path, rule in targets.items() if name in options else ():
        for model in rule.get("models") or ():
            if model not in options:
                raise UserError(f"target.{path}.models", model, "is no option of model", nearest(model, options))


def check_rule(rule: Any, key: str) -> None:
    """Refuse a rule with a mistyped name or value, or with nothing to hold a figure against."""
    if not isinstance(rule, dict) or set(rule) <= {"models"}:
        raise UserError(key, rule, "must have at_least, at_most or published", EXAMPLE)
    for name, value in rule.items():
        place, named = f"{key}.{name}", isinstance(value, list) and all(isinstance(one, str) for one in value)
        if name not in ("at_least", "at_most", "published", "models"):
            raise UserError(place, value, "is no part of a rule", "A rule has at_least, at_most, published and models")
        if name == "models" and not named:
            raise UserError(place, value, "must be a list of models' names", f"For example {place}: [mamba]")
        if name != "models" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(place, value, "must be a number", EXAMPLE)


def check_names(targets: dict[str, Any] | None, data: Any, model: str) -> None:
    """Refuse a target on what will not be measured, as far as the data tells before a run.

    Args:
        targets: sound ones, as ``check_targets`` leaves them.
        data: a data object.
        model: the run's. What is for other models alone may be of a data set that only they are run on.
    """
    metrics = ["loss", *data.metrics]
    for path, rule in (targets or {}).items():
        if path in NUMBERS or not is_for(rule, model):
            continue
        part, _, rest = path.partition(".")
        name, _, metric = rest.rpartition(".")  # a name may have dots itself
        if part == "further_tests":
            known(path, rule, name, getattr(data, "further_tests", ()), "further test")
        elif part == "test_slices":
            name, _, value = name.partition(".")
            known(path, rule, name, difficulties_of(data), "difficulty among its slices")
            if not value.removeprefix("-").isdecimal():
                remedy = f"For example target.test_slices.{name}.8.accuracy"
                raise UserError(f"target.{path}", rule, f"a value of {name} is a whole number", remedy)
        else:
            metric = rest
        known(path, rule, metric, SLICED if part == "test_slices" else metrics, "metric")


def known(path: str, rule: Any, name: str, names: Sequence[str], kind: str) -> None:
    """Refuse a target whose path has a name that is none of those there are."""
    if name not in names:
        raise UserError(f"target.{path}", rule, f"this data has no {kind} {name!r}", nearest(name, names))


def difficulties_of(data: Any) -> list[str]:
    """What the test split is sliced by, found from its first example."""
    return list(data.slices(next(data.evaluation_batches("test", 1)))) if hasattr(data, "slices") else []


def is_for(rule: dict[str, Any], model: str) -> bool:
    """Whether a rule is meant for a model; one that names none is for all."""
    return rule.get("models") is None or model in rule["models"]


def judged(targets: dict[str, Any] | None, summary: Summary) -> list[dict[str, Any]]:
    """Each target with its value and whether it is reached; ``None`` where nothing was measured or asked."""
    return [
        {"metric": path, "rule": rule, "value": value, "reached": is_reached(rule, value, summary["model"])}
        for path, rule in (targets or {}).items()
        for value in [value_at(summary, path)]
    ]


def is_reached(rule: dict[str, Any], value: float | None, model: str) -> bool | None:
    """Whether a value keeps within a rule's bounds, if it has some for this model."""
    asked = Rule(**rule)
    bounded = asked.at_least is not None or asked.at_most is not None
    if value is None or not bounded or not is_for(rule, model):
        return None
    above = asked.at_least is None or value >= asked.at_least
    return above and (asked.at_most is None or value <= asked.at_most)


def verdict(target: dict[str, Any]) -> str:
    """A judged target in words: ``test.accuracy >= 0.998: reached (0.9991)``."""
    rule, value, reached = Rule(**target["rule"]), target["value"], target["reached"]
    if value is None:
        return f"{bounds(target)}: not measured"
    word = {True: "reached", False: "missed", None: "no verdict"}[reached]
    published = "" if rule.published is None else f", published {rule.published:.6g}"
    return f"{bounds(target)}: {word} ({value:.4g}{published})"


def bounds(target: dict[str, Any]) -> str:
    """A judged target's figure and what is asked of it: ``test.accuracy >= 0.998``."""
    rule = Rule(**target["rule"])
    asked = {">=": rule.at_least, "<=": rule.at_most}
    said = " and ".join(f"{sign} {bound:.6g}" for sign, bound in asked.items() if bound is not None)
    return f"{target['metric']} {said}".rstrip()


def are_judged(value: Any) -> bool:
    """Whether something read from a file is what ``judged`` gives."""
    try:
        return all(
            verdict(one) and isinstance(one["value"], int | float | None) and isinstance(one["reached"], bool | None)
            for one in value
        )
    except (TypeError, KeyError, ValueError):
        return False


def value_at(node: Any, path: str) -> float | None:
    """The number at a dotted path; a name on the way may have dots itself."""
    if not path:
        return node if isinstance(node, int | float) and not isinstance(node, bool) else None
    if not isinstance(node, dict):
        return None
    for name, below in node.items():
        if path == name or path.startswith(f"{name}."):
            value = value_at(below, path[len(name) + 1 :])
            if value is not None:
                return value
    return None
