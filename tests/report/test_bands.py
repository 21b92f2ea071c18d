import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run

from seqlab.report.groups import group
from seqlab.report.plots.bands import Band, band, bands, loss_by_position, thin


def test_thinning_takes_means_of_consecutive_rows():
    x = np.arange(1000.0)
    step, loss = thin([x, x**2], 100)
    np.testing.assert_allclose(step, x.reshape(100, 10).mean(axis=1))
    np.testing.assert_allclose(loss, (x**2).reshape(100, 10).mean(axis=1))


@given(st.integers(1, 500), st.integers(1, 60))
def test_thinning_leaves_no_row_out(length, points):
    x = np.random.default_rng(length).standard_normal(length)
    (rows,) = thin([x], points)
    assert len(rows) == min(length, points)
    if length <= points:
        np.testing.assert_array_equal(rows, x)
    elif length % points == 0:
        assert rows.mean() == pytest.approx(x.mean())
    assert x.min() <= rows.min() and rows.max() <= x.max()


def test_a_band_is_interpolated_and_ends_where_a_curve_does():
    first = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    second = np.array([0.5, 2.5, 3.5]), np.array([2.5, 4.5, 5.5])  # two above the first
    found = band([first, second])
    np.testing.assert_allclose(found.x, [0.5, 1, 2, 3, 3.5])
    np.testing.assert_allclose(found.mean, found.x + 1)
    np.testing.assert_allclose(found.low, found.x)
    np.testing.assert_allclose(found.high, found.x + 2)

    parts = [part for x, y in found.alone for part in zip(x.tolist(), y.tolist(), strict=True)]
    assert parts == [(0.0, 0.0), (0.5, 0.5), (3.5, 3.5), (4.0, 4.0)]  # the first alone, before and after the second


def test_curves_with_nothing_in_common_are_each_drawn_alone():
    curves = [(np.arange(3.0), np.ones(3)), (np.arange(5.0, 8.0), np.ones(3))]
    found = band(curves)
    assert len(found.x) == len(found.mean) == 0
    assert found.alone == tuple(curves)
    assert found.ends == (0.0, 7.0)
    assert band([]) is None


def test_an_axis_that_was_recorded_only_later_takes_nothing_from_the_others():
    """As of a run that a later version resumed, which records one more unit."""
    (one,) = group([made_run()])
    one.runs[0].curves["validation"]["seconds"][:3] = np.nan
    found = bands(one, "validation", 200)
    assert list(found) == ["step", "tokens", "flops"]
    np.testing.assert_array_equal(found["step"].x, one.runs[0].curves["validation"]["step"])


def test_a_group_of_seeds_has_a_band_against_every_axis():
    (one,) = group([made_run(seed=seed) for seed in (1, 2, 3)])
    found = bands(one, "validation", 200)
    losses = np.stack([run.curves["validation"]["loss"] for run in one.runs])
    assert list(found) == ["step", "tokens", "flops", "seconds"]
    for axis in ("step", "tokens", "flops"):
        np.testing.assert_array_equal(found[axis].x, one.runs[0].curves["validation"][axis])
        np.testing.assert_allclose(found[axis].mean, losses.mean(axis=0))
        np.testing.assert_allclose(found[axis].low, losses.min(axis=0))
    ends = [run.curves["validation"]["seconds"][-1] for run in one.runs]
    assert len(set(ends)) == 3
    assert found["seconds"].x[-1] == min(ends)


def test_steps_without_a_loss_are_left_out():
    run = made_run()
    run.curves["train"]["loss"][10:20] = np.nan
    (one,) = group([run])
    found = bands(one, "train", 1000)["step"]
    assert len(found.x) == 90
    assert np.isfinite(found.mean).all()


def test_loss_by_position_bins_late_positions_only():
    run = made_run(**{"data.length": 1024})
    run.summary["test_loss_by_position"][7] = None
    (one,) = group([run])
    found = loss_by_position(one)
    losses = run.summary["test_loss_by_position"]
    assert 20 < len(found.x) <= 64
    np.testing.assert_allclose(found.x[:7], np.arange(1, 8))
    np.testing.assert_allclose(found.mean[:7], losses[:7])
    assert found.x[7] > 8 and 900 < found.x[-1] <= 1024


@pytest.mark.parametrize("points", [1, 2])
def test_a_curve_of_two_points_lies_inside_the_limits(points):
    x, y = np.array([0.0, 100.0])[:points], np.array([9.0, 1.0])[:points]
    low, high = Band(x, y, y - 0.5, y + 0.5, 2).extent
    assert low <= (y - 0.5).min() and high >= (y + 0.5).max()
