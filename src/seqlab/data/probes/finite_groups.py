"""Finite groups and monoids by their multiplication tables, and the products of all prefixes of a sequence.

Symbols: G elements, n points that permutations move, N sequences, L length. Elements are the numbers 0, 1, ... below G;
the product a b is "first a, then b", so a prefix is multiplied from the right by what comes next.
"""

from itertools import permutations

import numpy as np


def cyclic(order: int) -> np.ndarray:
    """The multiplication table of addition modulo ``order``: (G, G) int64."""
    return np.add.outer(np.arange(order), np.arange(order)) % order


def symmetric(points: int) -> np.ndarray:
    """All G = n! permutations of n points in lexicographic order, the first of them the identity: (G, n) int64."""
    return np.array(list(permutations(range(points))), dtype=np.int64)


def alternating(points: int) -> np.ndarray:
    """The G = n! / 2 permutations of n points with evenly many inversions, in lexicographic order: (G, n) int64."""
    every = symmetric(points)
    first, second = np.triu_indices(points, k=1)
    inversions = (every[:, first] > every[:, second]).sum(axis=1)  # (n!,)
    return every[inversions % 2 == 0]


def multiplication_table(group: np.ndarray) -> np.ndarray:
    """The table of permutations (G, n) that are closed under products and in lexicographic order: (G, G) int64.

    The entry at row a, column b is the number of the permutation that takes point i to b(a(i)).
    """
    points = group.shape[1]
    products = group[:, group].swapaxes(0, 1)  # (G, G, n): row a, column b, point i
    digits = points ** np.arange(points)[::-1]  # a permutation read as a number, whose order is the lexicographic one
    return np.searchsorted(group @ digits, products @ digits)


def prefix_products(table: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """The products of the first 1, 2, ..., L elements of each sequence: (G, G) and (N, L) to (N, L) int64.

    A scan by doubling (Hillis and Steele 1986, "Data parallel algorithms"): after k rounds an entry is the product of
    the last 2^k elements up to it. That is log2 L look-ups of the whole batch rather than L of a column; it needs
    associativity, and no inverses.
    """
    order, length = len(table), elements.shape[1]
    flat, result, reach = table.ravel(), elements.copy(), 1
    while reach < length:
        result[:, reach:] = flat[result[:, :-reach] * order + result[:, reach:]]
        reach *= 2
    return result
