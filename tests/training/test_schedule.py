"""Schedules against their closed forms."""

import math

import pytest

from seqlab.training import schedule

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
