"""Random numbers that depend on a seed, a name and an index alone, and the order of the items in an epoch.

All of it comes from the raw 64-bit words of the counter-based generator Philox (Salmon et al. 2011), whose sequence
NumPy guarantees, and from exactly rounded arithmetic. So a batch can be drawn without drawing those before it, and is
the same on every machine.

Symbols: B batch.
"""

import hashlib
from functools import lru_cache

import numpy as np


def bits(seed: int, purpose: str, index: int, shape: int | tuple[int, ...], start: int = 0) -> np.ndarray:
    """Independent uniform 64-bit words, uint64 of the given shape.

    Args:
        seed: shared by all draws of a data set or run.
        purpose: names the stream; different purposes never share words.
        index: the number of the draw in that stream, from 0.
        shape: of the result; a longer draw begins with the shorter one.
        start: skip this many blocks of four words.
    """
    name = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    key = np.array([seed % 2**64, name], dtype=np.uint64)
    counter = np.array([start, 0, 0, index], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(shape)


def uniform(seed: int, purpose: str, index: int, shape: int | tuple[int, ...]) -> np.ndarray:
    """Multiples of 2^-53, uniform on [0, 1), float64 of the given shape; the arguments are those of ``bits``."""
    return (bits(seed, purpose, index, shape) >> np.uint64(11)) * 2.0**-53


def integers(seed: int, purpose: str, index: int, count: int, bound: int) -> np.ndarray:
    """Integers uniform on [0, bound), (count,) int64."""
    return (uniform(seed, purpose, index, count) * bound).astype(np.int64)


@lru_cache(maxsize=4)
def permutation(seed: int, purpose: str, epoch: int, size: int) -> np.ndarray:
    """The numbers below ``size`` in random order, (size,) int64, read-only."""
    order = np.argsort(bits(seed, purpose, epoch, size), kind="stable")
    order.flags.writeable = False
    return order


def epoch_items(index: int, batch_size: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The items of batch number ``index``, where every item comes once an epoch in an order drawn for that epoch.

    A batch may contain the end of one epoch and the beginning of the next.

    Returns:
        The epoch and the item number for each place in the batch, (B,) int64 each.
    """
    epochs, places = np.divmod(index * batch_size + np.arange(batch_size), size)
    items = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        items[here] = permutation(seed, "order of an epoch", epoch, size)[places[here]]
    return epochs, items
