"""Targets: what is refused before a run, and what is said after it."""

from typing import ClassVar

import pytest

from seqlab.errors import UserError
from seqlab.report.rows import outcomes
from seqlab.runs.targets import check_names, check_targets, judged, value_at, verdict
from support import Echo

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


class Text(Echo):
    """Data without further tests and difficulties."""


class Probe:
    metrics: ClassVar = {"accuracy": None}
    further_tests = ("length=512", "length=64,noise=0.2")

    def evaluation_batches(self, split, batch_size):
        assert (split, batch_size) == ("test", 1)
        yield "an example"

    def slices(self, batch):
        assert batch == "an example"
        return {"distance": None, "pairs": None}


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
        check_targets(targets, "mamba")


def test_sound_targets_pass():
    check_targets(None, "mamba")
    others_alone = {"at_least": 1, "published": 1.0, "models": ["mamba"]}
    check_targets({"further_tests.length=1048576.accuracy": others_alone}, "mamba")
    check_targets({"steps": {"at_most": 400_000}, "test_slices.distance.8.accuracy": {"published": 0.5}}, "mamba")


SOUND = {
    "test.loss": {"at_most": 1},
    "best_validation.accuracy": {"at_least": 1},
    "steps": {"at_most": 3},
    "further_tests.length=512.accuracy": {"at_least": 1, "models": ["lstm", "mamba"]},
    "further_tests.length=64,noise=0.2.loss": {"at_least": 1},
    "test_slices.distance.8.count": {"at_least": 1},
    "test_slices.pairs.-1.accuracy": {"published": 1},
}


def test_names_that_the_data_has():
    check_names(None, Probe(), "mamba")
    check_names(SOUND, Probe(), "mamba")
    check_names({"test.perplexity": {"at_most": 30}}, Text({"perplexity": None}), "mamba")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("test.acuracy", r"no metric 'acuracy'\.\nDid you mean 'accuracy'\?"),
        ("best_validation.top5", r"no metric 'top5'\.\nThere are: loss, accuracy"),
        ("further_tests.length=521.accuracy", r"no further test 'length=521'\.\nDid you mean 'length=512'\?"),
        ("further_tests.length=64,noise=0.3.loss", r"no further test .*\nDid you mean 'length=64,noise=0.2'\?"),
        ("further_tests.length=512.acuracy", r"no metric 'acuracy'\.\nDid you mean 'accuracy'\?"),
        ("further_tests.accuracy", r"no further test ''\.\nThere are: length=512, length=64,noise=0\.2"),
        ("test_slices.distanse.8.accuracy", r"no difficulty .*'distanse'\.\nDid you mean 'distance'\?"),
        ("test_slices.distance.accuracy", r"a value of distance is a whole number\.\nFor example target\.test_slices"),
        ("test_slices.distance.8.perplexity", r"no metric 'perplexity'\.\nThere are: loss, accuracy, count"),
    ],
)
def test_a_name_that_the_data_lacks_is_refused_for_the_models_that_it_is_for(path, message):
    with pytest.raises(UserError, match=rf"^target\.{path}=.*{message}"):
        check_names(SOUND | {path: {"at_least": 1, "models": ["lstm", "mamba"]}}, Probe(), "mamba")
    check_names({path: {"at_least": 1, "models": ["lstm"]}}, Probe(), "mamba")


def test_data_without_difficulties_has_no_names():
    with pytest.raises(UserError, match=r"no further test 'length=8'\.\nThere is none\."):
        check_names({"further_tests.length=8.loss": {"at_most": 1}}, Text({"perplexity": None}), "mamba")
    with pytest.raises(UserError, match=r"no difficulty among its slices 'distance'\.\nThere is none\."):
        check_names({"test_slices.distance.8.loss": {"at_most": 1}}, Text({"perplexity": None}), "mamba")


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
