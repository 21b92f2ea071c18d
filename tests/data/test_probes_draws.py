"""The draws behind the probes: by example, uniform, weighted as they say, exact."""

import itertools

import numpy as np
import pytest

from seqlab.data.probes.draws import DENSE, Draw, exponentials, power_law
from seqlab.data.streams import bits


@pytest.mark.parametrize("width", [1, 7, 8, 9, 40])
def test_an_example_has_its_numbers_whatever_is_drawn_beside_it(width):
    whole, part = Draw(3, "p", 0, 12), Draw(3, "p", 5, 4)
    weights = power_law(2 * width, 0.5)
    for draw in (
        lambda d: d.words("w", width),
        lambda d: d.below("b", width, 1000),
        lambda d: d.distinct("dense", width, width + 1),
        lambda d: d.distinct("sparse", width, DENSE * width + 1),
        lambda d: d.subset("s", width, 3 * width),
        lambda d: d.weighted("g", width, weights),
    ):
        assert np.array_equal(draw(whole)[5:9], draw(part))
        assert draw(Draw(3, "p", 5, 0)).shape == (0, width)
        assert not np.array_equal(draw(whole), draw(Draw(4, "p", 0, 12))) or width == 1


def test_words_are_the_low_and_high_halves_of_philox_s():
    raw = bits(3, "p w", 0, 8)
    low, high = raw & np.uint64(2**32 - 1), raw >> np.uint64(32)
    assert Draw(3, "p", 0, 1).words("w", 16)[0].tolist() == np.stack([low, high], axis=1).ravel().tolist()
    later = bits(3, "p w", 0, 4, start=1)
    assert later.tolist() == raw[4:].tolist()


def test_integers_are_uniform():
    values = Draw(0, "u", 0, 5000).below("x", 8, 7)
    counts = np.bincount(values.ravel(), minlength=7)
    assert len(counts) == 7
    assert abs(counts - 40_000 / 7).max() < 5 * (40_000 / 7) ** 0.5


@pytest.mark.parametrize("bound", [5, 3 * DENSE])
def test_every_ordered_choice_is_as_likely(bound):
    """Both ways of drawing: by sorting, and by drawing those again that came before."""
    count = 200_000
    a, b, c = Draw(1, "d", 0, count).distinct("x", 3, bound).T
    codes = (a * bound + b) * bound + c
    counts = np.bincount(codes, minlength=bound**3).reshape(bound, bound, bound)
    allowed = np.zeros_like(counts, dtype=bool)
    for choice in itertools.permutations(range(bound), 3):
        allowed[choice] = True
    assert (counts[~allowed] == 0).all()
    expected = count / allowed.sum()
    chi_square = ((counts[allowed] - expected) ** 2 / expected).sum()
    freedom = allowed.sum() - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_a_subset_is_ascending_and_whole_where_all_are_taken():
    chosen = Draw(0, "s", 0, 50).subset("x", 5, 9)
    assert (np.diff(chosen, axis=1) > 0).all()
    assert Draw(0, "s", 0, 2).subset("x", 4, 4).tolist() == [[0, 1, 2, 3]] * 2


def test_weighted_places_are_drawn_one_after_the_other():
    weights, count = np.array([4.0, 2.0, 1.0, 1.0]), 100_000
    a, b = Draw(2, "w", 0, count).weighted("x", 2, weights).T
    for i, j in itertools.permutations(range(4), 2):
        expected = weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
        share = np.mean((a == i) & (b == j))
        assert share == pytest.approx(expected, abs=5 * (expected / count) ** 0.5)
    every = Draw(2, "w", 0, 100).weighted("x", 4, weights)
    assert (np.sort(every, axis=1) == np.arange(4)).all()


def test_logarithms_and_powers_without_the_machine_s_own():
    middles = (np.arange(2**16) + 0.5) / 2**16
    assert np.allclose(exponentials(), -np.log(middles), rtol=1e-14, atol=1e-15)
    assert (np.diff(exponentials()) < 0).all()
    assert exponentials()[-1] > 0
    for alpha in (0.0, 0.01, 1.0, 2.5):
        assert np.allclose(power_law(300, alpha), np.arange(1.0, 301) ** (alpha - 1), rtol=1e-15)
