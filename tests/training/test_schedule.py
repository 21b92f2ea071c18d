"""Schedules against their closed forms."""

import math
from functools import partial

import pytest

from seqlab.errors import UserError, under
from seqlab.training import schedule
from support import options

TOTAL = 1001


def test_constant_is_one_after_the_warmup():
    assert [schedule.constant(i, TOTAL) for i in (0, 500, 1000)] == [1, 1, 1]
    assert [schedule.constant(i, TOTAL, warmup=4) for i in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.parametrize("shape", [schedule.cosine, schedule.linear])
def test_ends_at_the_final_fraction(shape):
    assert shape(0, TOTAL) == pytest.approx(1)
    assert shape(TOTAL - 1, TOTAL, final=0.1) == pytest.approx(0.1)
    assert shape(500, TOTAL) == pytest.approx(0.5)


def test_cosine_between():
    assert schedule.cosine(250, TOTAL) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_linear_between():
    assert schedule.linear(250, TOTAL, final=0.2) == pytest.approx(1 - 0.8 * 0.25)


def test_warmup_is_steps_or_a_fraction():
    assert schedule.cosine(49, TOTAL, warmup=100) == pytest.approx(50 / 101)
    assert schedule.cosine(49, 1000, warmup=0.1) == pytest.approx(50 / 101)


def test_warmup_stable_decay():
    factors = [schedule.warmup_stable_decay(i, 100, warmup=10, decay=20, final=0.1) for i in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factors[10:80] == pytest.approx([1] * 70)
    assert factors[80:] == pytest.approx([1 - 0.9 * (i + 1) / 20 for i in range(20)])


@pytest.mark.parametrize("shape", [schedule.constant, schedule.cosine, schedule.linear, schedule.warmup_stable_decay])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_shortest_runs(shape, total):
    assert all(0 <= shape(i, total, warmup=0.5) <= 1 for i in range(total))


@pytest.mark.parametrize(
    ("shape", "settings", "words"),
    [
        (schedule.warmup_stable_decay, {"decay": 200}, "a warmup of 0 steps and a decay of 200 steps"),
        (schedule.warmup_stable_decay, {"warmup": 0.5, "decay": 0.6}, "a warmup of 50 steps and a decay of 60 steps"),
        (schedule.warmup_stable_decay, {"warmup": 81}, "a warmup of 81 steps and a decay of 20 steps"),
        (schedule.cosine, {"warmup": 101}, "a warmup of 101 steps"),
        (schedule.linear, {"warmup": 1000}, "a warmup of 1000 steps"),
        (schedule.constant, {"warmup": 101}, "a warmup of 101 steps"),
    ],
)
def test_phases_longer_than_the_run_are_refused(shape, settings, words):
    message = f"schedule.warmup.*: {words} do(es)? not fit into a run of 100 steps"
    with pytest.raises(UserError, match=message), under("schedule", ["warmup", "decay"]):
        schedule.check_fits(partial(shape, **settings), 100)


@pytest.mark.parametrize("total", [1, 3, 7, 10, 100])
def test_phases_that_fill_the_run_are_not(total):
    """However their numbers of steps are rounded; a schedule of one's own may mean anything by its settings."""
    schedule.check_fits(partial(schedule.warmup_stable_decay, warmup=0.3, decay=0.7), total)
    schedule.check_fits(partial(schedule.warmup_stable_decay, warmup=0.5, decay=0.5), total)
    schedule.check_fits(partial(schedule.cosine, warmup=total), total)
    schedule.check_fits(lambda step, total, decay=1000.0: 1.0, total)


@pytest.mark.parametrize("name", options("schedule"))
def test_a_run_refuses_a_warmup_that_it_cannot_hold(name, train, capsys):
    job = train(f"schedule={name}", "schedule.warmup=3")
    said = capsys.readouterr().err
    assert job.status == 2 and "Traceback" not in said
    assert "a warmup of 3 steps" in said and "not fit into a run of 2 steps" in said
    assert not job.folder.exists()
