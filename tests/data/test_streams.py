"""Random streams: the same everywhere, independent of the order in which they are asked for, and uniform."""

import hashlib

import numpy as np
import pytest

from seqlab.data.streams import bits, epoch_items, integers, permutation, uniform


def philox(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox4x64-10, as its authors define it (Salmon et al. 2011)."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (right >> 64) ^ b ^ k, right % 2**64, (left >> 64) ^ d ^ m, left % 2**64
        k, m = (k + 0x9E3779B97F4A7C15) % 2**64, (m + 0xBB67AE8584CAA73B) % 2**64
    return [a, b, c, d]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_stream_is_philox_keyed_by_seed_and_purpose_and_counted_from_the_index(seed):
    name = int.from_bytes(hashlib.blake2b(b"example", digest_size=8).digest(), "little")
    expected = [word for block in (1, 2, 3) for word in philox([block, 0, 0, 5], [seed, name])]
    assert bits(seed, "example", 5, 12).tolist() == expected


def test_a_longer_draw_begins_with_the_shorter():
    assert np.array_equal(bits(0, "x", 0, (6, 5))[:4], bits(0, "x", 0, (4, 5)))


@pytest.mark.parametrize("other", [(1, "x", 0), (0, "y", 0), (0, "x", 1), (-1, "x", 0)])
def test_seed_purpose_and_index_all_matter(other):
    assert not np.intersect1d(bits(0, "x", 0, 1000), bits(*other, 1000)).size


def test_uniform_numbers_are_uniform():
    draws = uniform(0, "x", 0, 100_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 1e5)
    assert abs(draws.var() - 1 / 12) < 0.002


def test_integers_reach_every_value_below_the_bound():
    counts = np.bincount(integers(0, "x", 0, 70_000, 7), minlength=7)
    assert counts.size == 7
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 22.5  # chi-squared, 6 degrees of freedom, p = 0.001


def test_permutations_are_uniform():
    first = np.bincount([permutation(0, "x", epoch, 5)[0] for epoch in range(5000)], minlength=5)
    assert ((first - 1000) ** 2 / 1000).sum() < 18.5  # chi-squared, 4 degrees of freedom, p = 0.001
    assert sorted(permutation(0, "x", 0, 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size, batch_size", [(12, 4), (13, 5), (7, 7), (5, 1)])
def test_every_item_comes_once_an_epoch(size, batch_size):
    batches = [epoch_items(index, batch_size, 3, size) for index in range(4 * size)]
    epochs, items = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    for epoch in range(4 * batch_size):
        assert sorted(items[epochs == epoch].tolist()) == list(range(size))
    assert epochs.tolist() == sorted(epochs.tolist())


def test_each_epoch_has_an_order_of_its_own():
    orders = {tuple(epoch_items(epoch, 20, seed, 20)[1].tolist()) for epoch in range(10) for seed in range(3)}
    assert len(orders) == 30


def test_a_batch_is_the_same_in_whatever_order_it_is_asked_for():
    forwards = [epoch_items(i, 8, 0, 50)[1].tolist() for i in range(40)]
    backwards = [epoch_items(i, 8, 0, 50)[1].tolist() for i in reversed(range(40))]
    assert forwards == backwards[::-1]
