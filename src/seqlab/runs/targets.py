"""The targets of an experiment: ``target`` in its YAML, checked at the start and judged at the end.

A target is a path in ``summary.json`` and a rule::

    target:
      test.accuracy: {at_least: 0.998, published: 0.998}
      further_tests.length=1048576.accuracy: {at_least: 1.0, models: [mamba]}

A model that ``models`` does not name, and a rule with ``published`` alone, get a value and no verdict. A missed target
does not change a run's exit status.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqlab.errors import UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from seqlab.data import DataSet  # which brings torch, and the command line shows its help without

PARTS = ("test", "best_validation", "further_tests", "test_slices")
NUMBERS = (
    *("best_validation_loss", "steps", "tokens", "flops", "seconds", "wall_seconds", "further_seconds"),
    *("tokens_per_second", "peak_memory_bytes", "data_wait_share"),
    *("parameters", "parameters_without_embeddings", "active_parameters", "trainable_parameters", "state_bytes"),
)
"""What a path may begin with: mappings of numbers, and numbers."""

SLICE_METRICS = ("loss", "accuracy", "count")
EXAMPLE = "For example target: {test.accuracy: {at_least: 0.99}}"


@dataclass(frozen=True)
class Rule:
    """The bounds that a value is compared with, inclusive, and the published value."""

    at_least: float | None = None
    at_most: float | None = None
    published: float | None = None
    models: list[str] | None = None


def targets_of(cfg: "DictConfig") -> dict[str, Any] | None:
    """The published figures to reach; the configuration of an older run has none."""
    from omegaconf import OmegaConf  # which whoever only reads targets need not wait for

    target = OmegaConf.select(cfg, "target")
    return OmegaConf.to_container(target) if OmegaConf.is_config(target) else target


def check_targets(targets: Any, name: str) -> None:
    """Refuse targets that could never be judged, before anything is built.

    Args:
        targets: what the configuration says of them.
        name: the run's, which is its model's unless it was given another.

    Raises:
        UserError: names the target.
    """
    if targets is None:
        return
    if not isinstance(targets, dict):
        raise UserError("target", targets, "must be a mapping of a path in summary.json to a rule", EXAMPLE)
    for path, rule in targets.items():
        head = str(path).partition(".")[0]
        if (head not in PARTS or head == path) and path not in NUMBERS:
            known = ", ".join([*(f"{part}.<name>" for part in PARTS), *NUMBERS])
            problem = "is no path in summary.json that a target can have"
            raise UserError(f"target.{path}", rule, problem, f"There are: {known}")
        check_rule(rule, f"target.{path}", name)


def check_rule(rule: Any, key: str, run: str) -> None:
    """Refuse a rule with a mistyped name or value, or without a bound and a published value.

    Raises:
        UserError: names the rule.
    """
    from seqlab.config.options import all_options_of  # imports Hydra

    if not isinstance(rule, dict) or set(rule) <= {"models"}:
        raise UserError(key, rule, "must have at_least, at_most or published", EXAMPLE)
    for name, value in rule.items():
        place = f"{key}.{name}"
        if name not in Rule.__annotations__:
            raise UserError(place, value, "is no part of a rule", "A rule has at_least, at_most, published and models")
        if name != "models":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(place, value, "must be a number", EXAMPLE)
            continue
        if not isinstance(value, list) or not all(isinstance(model, str) for model in value):
            raise UserError(place, value, "must be a list of models' names", f"For example {place}: [mamba]")
        options = all_options_of("model")
        for model in value if run in options else ():  # runs with a name of their own (name=...) have any
            if model not in options:
                raise UserError(place, model, "is no option of model", nearest(model, options))


def check_names(targets: dict[str, Any] | None, data: "DataSet", model: str) -> None:
    """Refuse a target on a metric or test that the data does not have.

    Args:
        targets: sound ones, as ``check_targets`` leaves them.
        data: a data object.
        model: the run's. A target for other models alone may be of a data set that only they are run on.

    Raises:
        UserError: names the target.
    """
    metrics = ["loss", *data.metrics]
    for path, rule in (targets or {}).items():
        if path in NUMBERS or not is_for(rule, model):
            continue
        part, _, rest = path.partition(".")
        name, _, metric = rest.rpartition(".")  # a name may have dots itself
        if part == "further_tests":
            check_name(path, rule, name, data.further_tests, "further test")
        elif part == "test_slices":
            name, _, value = name.partition(".")
            check_name(path, rule, name, difficulties_of(data), "difficulty among its slices")
            if not value.removeprefix("-").isdecimal():
                remedy = f"For example target.test_slices.{name}.8.accuracy"
                raise UserError(f"target.{path}", rule, f"a value of {name} is a whole number", remedy)
        else:
            metric = rest
        check_name(path, rule, metric, SLICE_METRICS if part == "test_slices" else metrics, "metric")


def check_name(path: str, rule: Any, name: str, names: Sequence[str], kind: str) -> None:
    """Refuse a target whose path has a name that is none of ``names``.

    Raises:
        UserError: names the target.
    """
    if name not in names:
        raise UserError(f"target.{path}", rule, f"this data has no {kind} {name!r}", nearest(name, names))


def difficulties_of(data: "DataSet") -> list[str]:
    """The names of the test split's slices, from its first example."""
    return list(data.slices(next(data.evaluation_batches("test", 1))))


def is_for(rule: dict[str, Any], model: str) -> bool:
    """Whether a rule is meant for a model; one that names none is for all."""
    return rule.get("models") is None or model in rule["models"]


def judged(targets: dict[str, Any] | None, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with its value and whether it is reached, ``None`` where there is no value or no bound."""
    return [
        {"metric": path, "rule": rule, "value": value, "reached": is_reached(rule, value, summary["model"])}
        for path, rule in (targets or {}).items()
        for value in [value_at(summary, path)]
    ]


def is_reached(rule: dict[str, Any], value: float | None, model: str) -> bool | None:
    """Whether a value is within a rule's bounds; ``None`` if there are none for this model, or no value."""
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
    """A judged target's metric and bounds: ``test.accuracy >= 0.998``."""
    rule = Rule(**target["rule"])
    asked = {">=": rule.at_least, "<=": rule.at_most}
    said = " and ".join(f"{sign} {bound:.6g}" for sign, bound in asked.items() if bound is not None)
    return f"{target['metric']} {said}".rstrip()


def changes_of(name: str) -> tuple[str, str]:
    """What a further test changes and to what: ``length=512,pairs=64`` is ``length, pairs`` and ``512, 64``."""
    changes = [change.partition("=") for change in name.split(",")]
    return ", ".join(key for key, _, _ in changes), ", ".join(value or key for key, _, value in changes)


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
