"""Targets: what is refused before a run, and what is said after it."""

from typing import ClassVar

import pytest

from seqlab.analysis.targets import are_judged, check_metrics, check_targets, judged, outcomes, value_at, verdict
from seqlab.errors import UserError

SUMMARY = {
    "model": "mamba",
    "test": {"loss": 0.5, "accuracy": 0.9991},
    "further_tests": {
        "length=512": {"accuracy": 0.91},
        "noise=0.2": {"accuracy": 0.7},
        "length=64": {"error": "memory"},
    },
    "test_slices": {"distance": {"8": {"accuracy": 0.25, "loss": 1.0, "count": 3}}},
    "steps": 12,
}


class Data:
    metrics: ClassVar = {"accuracy": None}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1], r"target=\[1\]: must be a mapping"),
        ({"tset.accuracy": {"at_least": 1.0}}, r"target.tset.accuracy=.*is no path in summary.json"),
        ({"test": {"at_least": 1.0}}, "is no path in summary.json"),
        ({"test.accuracy": {"atleast": 1.0}}, r"target.test.accuracy.atleast=1.0: is no part of a rule"),
        ({"test.accuracy": {"at_least": "high"}}, "target.test.accuracy.at_least=high: must be a number"),
        ({"test.accuracy": {"at_least": 1.0, "models": "mamba"}}, r"target.test.accuracy.models=mamba"),
        ({"test.accuracy": {"models": ["mamba"]}}, "must have at_least, at_most or published"),
        ({"test.accuracy": 0.9}, "target.test.accuracy=0.9"),
        ({"test.accuracy": {"at_least": True}}, "must be a number"),
        ({"test.accuracy": {}}, "must have at_least"),
    ],
)
def test_a_mistyped_target_is_refused(targets, message):
    with pytest.raises(UserError, match=message):
        check_targets(targets)


def test_sound_targets_pass():
    check_targets(None)
    check_targets({"further_tests.length=1048576.accuracy": {"at_least": 1, "published": 1.0, "models": ["mamba"]}})
    check_targets({"steps": {"at_most": 400_000}, "test_slices.distance.8.accuracy": {"published": 0.5}})


def test_a_metric_that_the_data_lacks_is_refused():
    check_metrics(None, Data)
    check_metrics({"test.loss": {"at_most": 1}, "best_validation.accuracy": {}, "further_tests.x.any": {}}, Data)
    with pytest.raises(UserError, match=r"target.test.acuracy=.*\nIt measures loss, accuracy"):
        check_metrics({"test.acuracy": {"at_least": 1}}, Data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("test.accuracy", 0.9991),
        ("steps", 12),
        ("further_tests.length=512.accuracy", 0.91),
        ("further_tests.noise=0.2.accuracy", 0.7),
        ("further_tests.length=64.accuracy", None),
        ("further_tests.length=5.accuracy", None),
        ("test_slices.distance.8.accuracy", 0.25),
        ("test_slices.distance", None),
        ("model", None),
    ],
)
def test_value_at_a_path(path, value):
    assert value_at(SUMMARY, path) == value


@pytest.mark.parametrize(
    ("path", "rule", "reached", "words"),
    [
        ("test.accuracy", {"at_least": 0.998}, True, "test.accuracy >= 0.998: reached (0.9991)"),
        ("test.accuracy", {"at_least": 0.9991}, True, "test.accuracy >= 0.9991: reached (0.9991)"),
        ("test.loss", {"at_most": 0.4}, False, "test.loss <= 0.4: missed (0.5)"),
        ("test.loss", {"at_least": 0.4, "at_most": 0.6}, True, "test.loss >= 0.4 and <= 0.6: reached (0.5)"),
        (
            "further_tests.length=512.accuracy",
            {"at_least": 1, "published": 0.998},
            False,
            "further_tests.length=512.accuracy >= 1: missed (0.91, published 0.998)",
        ),
        ("test.accuracy", {"at_least": 1, "models": ["lstm"]}, None, "test.accuracy >= 1: no verdict (0.9991)"),
        ("test.accuracy", {"at_least": 0.9, "models": ["mamba"]}, True, "test.accuracy >= 0.9: reached (0.9991)"),
        ("test.accuracy", {"published": 1.0}, None, "test.accuracy: no verdict (0.9991, published 1)"),
        (
            "further_tests.length=64.accuracy",
            {"at_least": 1},
            None,
            "further_tests.length=64.accuracy >= 1: not measured",
        ),
    ],
)
def test_the_verdict(path, rule, reached, words):
    (target,) = judged({path: rule}, SUMMARY)
    assert target["reached"] is reached
    assert verdict(target) == words
    assert are_judged([target])


def test_no_target_no_verdict():
    assert judged(None, SUMMARY) == []


def seeds(*values):
    targets = {"test.accuracy": {"at_least": 0.9, "published": 1.0}}
    return [{"targets": judged(targets, {"model": "mamba", "test": {"accuracy": value}})} for value in values]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.95, 0.92), "reached"),
        ((0.5, 0.6), "missed"),
        ((0.95, 0.6, 0.91), "reached by 2 of 3 seeds"),
        ((0.95, None), "reached by 1 of 2 seeds"),
        ((None,), "not measured"),
    ],
)
def test_over_seeds(values, words):
    (one,) = outcomes(seeds(*values))
    assert one.verdict == words
    assert one.asked == "test.accuracy >= 0.9"
    assert one.values == tuple(value for value in values if value is not None)
    assert one.published == 1.0


@pytest.mark.parametrize(
    "value",
    [
        1,
        ["x"],
        [{}],
        [{"metric": "a", "rule": {"x": 1}, "value": 1, "reached": True}],
        [{"metric": "a", "rule": {"at_least": 1, "published": "high"}, "value": 1, "reached": True}],
        [{"metric": "a", "rule": {"at_least": 1, "published": [1]}, "value": 1, "reached": True}],
    ],
)
def test_what_a_damaged_summary_may_hold(value):
    assert not are_judged(value)
