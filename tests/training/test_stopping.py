"""Ending before the budget, when validation is good enough or no better for long; and what is counted of updates."""

import pytest
from fits import build, run, stop_at

from seqlab.errors import Interrupted, UserError
from seqlab.training.counters import Counters, Outcome
from seqlab.training.metrics import PositionMean
from seqlab.training.optim import adamw
from support import Echo


def right(preds, target):
    return preds.argmax(dim=-1) == target


def stopping_at(folder, value=0.9, **settings):
    rule = {"metric": "accuracy", "value": value}
    settings = {"steps": 400, "evaluate_every": 10, "stop_above": rule} | settings
    return build(folder, data=Echo({"accuracy": right}), optimizer=lambda m: adamw(m, lr=1e-2), **settings)


def test_ends_at_the_first_validation_above(tmp_path):
    records, one = [], stopping_at(tmp_path)
    run(one, records.append)
    found = [r["accuracy"] for r in records if r["split"] == "validation"]
    assert found[-1] > 0.9
    assert all(accuracy <= 0.9 for accuracy in found[:-1])
    assert one.counters.step == 10 * len(found) < 400
    assert one.stop_reason == f"validation accuracy {found[-1]:.4g} is above 0.9"


def test_the_best_weights_are_still_those_of_the_lowest_loss(tmp_path):
    records, one = [], stopping_at(tmp_path)
    run(one, records.append)
    losses = {r["step"]: r["loss"] for r in records if r["split"] == "validation"}
    assert one.counters.best_step == min(losses, key=losses.get)


def test_stays_ended_when_resumed_unless_more_is_asked(tmp_path):
    one = stopping_at(tmp_path)
    run(one)
    same, more = stopping_at(tmp_path), stopping_at(tmp_path, value=1.0, steps=one.counters.step + 3)
    for again, steps in ((same, 0), (more, 3)):
        again.restore()
        run(again)
        assert again.counters.step == one.counters.step + steps


def test_never_above_goes_on(tmp_path):
    one = stopping_at(tmp_path, value=1.0, steps=20)
    run(one)
    assert (one.counters.step, one.stop_reason) == (20, None)


def test_patience_gives_its_reason(tmp_path):
    one = build(tmp_path, steps=50, evaluate_every=1, patience=2, optimizer=lambda m: adamw(m, lr=1e-12))
    one.counters.evaluations_without_gain = 2
    assert one.stop_reason == "no better validation loss in 2 evaluations"


def test_patience_is_as_long_when_resumed(tmp_path):
    settings = {"steps": 50, "evaluate_every": 1, "patience": 3, "optimizer": lambda m: adamw(m, lr=1e-38)}
    one = build(tmp_path, **settings)
    stop_at(one, 3)
    with pytest.raises(Interrupted):
        run(one)
    again = build(tmp_path, **settings)
    again.restore()
    run(again)
    assert (again.counters.step, again.counters.best_step) == (4, 1)
    assert again.stop_reason == "no better validation loss in 3 evaluations"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"metric": "acuracy", "value": 0.9},
            r"stop_above.metric=acuracy: is no metric of this data.\nDid you mean 'accuracy'\?",
        ),
        ({"metric": "accuracy"}, "must name a metric of the validation split and a number"),
        ({"metric": "accuracy", "value": "high"}, "must name a metric"),
        ({"metric": "accuracy", "value": 0.9, "mode": "max"}, "must name a metric"),
    ],
)
def test_a_mistyped_rule_is_refused(tmp_path, rule, message):
    with pytest.raises(UserError, match=message):
        stopping_at(tmp_path, stop_above=rule)


def test_the_metric_may_be_any_kind(tmp_path):
    data = Echo({"accuracy": PositionMean(right)})
    one = build(tmp_path, data=data, stop_above={"metric": "accuracy", "value": -1.0})
    run(one)
    assert one.counters.step == 3


TAKEN = Outcome(loss=1.0, grad_norm=1.0, taken=True, hopeless=False)


def test_the_rate_leaves_out_the_updates_after_each_start():
    counters = Counters()
    assert counters.steps_per_second is None
    counters.updated(TAKEN, 30.0, 0.0, starting=True)
    assert counters.steps_per_second == pytest.approx(1 / 30)  # there is nothing else yet
    for _ in range(4):
        counters.updated(TAKEN, 0.5, 0.0, starting=False)
    counters.updated(TAKEN, 20.0, 0.0, starting=True)  # it was stopped, and goes on
    assert counters.steps_per_second == pytest.approx(2.0)
    assert counters.seconds == 52.0
